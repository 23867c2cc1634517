// Dynamic routing (procedure 1 of "Dynamic Routing Between Capsules"), forward and backward, whose votes
// û_ij = W_ij u_i are only ever in registers and shared memory; backends/_cupy_kernels.py compiles and launches it.
//
// Logits are not kept either: b_ij = û_ij · V_j, with V_j the sum of all outputs so far, is what an iteration needs
// of those before it. An iteration is `route_*`, one block for each tile of images and slice of input capsules,
// which leaves partial sums of s_j, then `squash_sums`, which adds them in a fixed order: nothing is atomic, and the
// same input gives the same bits. Backward walks the iterations back with `route_back` and `squash_back`, and ends in
// `gradients`, where a block owns a few input capsules, so that their part of ∂W has one writer.
//
// u [B, N, K], weight and dweight [N, J, D, K]; capsules, their sums s and gradients [B, J, D], per iteration
// [R, B, J, D]; partial sums [splits, B, J, D]. Macros set the sizes:
//   J, D, K              output capsules, their dimensions, input dimensions
//   LEAKY                1 for an extra routing logit of zero
//   DOUBLE               1 for float64
//   PRODUCT              how votes are multiplied: 0 as all else, 1 tf32, 2 bf16 tensor cores (float32 sums)
//   LANES                threads along images; a thread has one chunk of one output capsule's dimensions
//   IMAGES, TILE, STAGE  images per thread, input capsules per softmax, and per load into shared memory, in `route_*`
//   STAGED               whether `route_*` copies weights to shared memory
//   BACK_TILE, BACK_STAGED   the same in `gradients`, where IMAGES is 1 and a stage is a tile
//
// A warp's threads stand for 32 images where there are that many lanes: all then want the same weight, which shared
// memory hands to a whole warp at once, and none of the same image's votes.

#if DOUBLE
typedef double Real;
#else
typedef float Real;
#endif
typedef long long Index;  // a batch of inputs may pass 2^31 elements

__host__ __device__ constexpr int divisor(int n, int most) { return n % most == 0 ? most : divisor(n, most - 1); }
__host__ __device__ constexpr int load_of(int n, int most) { return n % most == 0 ? most : load_of(n, most / 2); }
__host__ __device__ constexpr int padded(int images) { return images < 8 ? images : images + 4; }  // rows start in different banks

constexpr int CHUNKS = (D + 15) / 16;                 // a thread keeps at most 16 dimensions in registers
constexpr int DIMS = (D + CHUNKS - 1) / CHUNKS;       // dimensions in a chunk; the last one may have fewer
constexpr int ROWS = J * CHUNKS;
constexpr int THREADS = (ROWS * LANES + 31) / 32 * 32;
constexpr int DEPTH = divisor(K, 8);                  // input dimensions multiplied at a time
constexpr int WIDTH = load_of(DEPTH, 16 / sizeof(Real));  // elements in one load, of at most 16 bytes
constexpr int STEP = load_of(LANES, 16 / sizeof(Real));   // images in one load
constexpr int COLUMNS = (J * D + 7) / 8 * 8;          // of a tile of votes from tensor cores
constexpr int GROUPS = D < 128 ? 128 / D : 1;         // threads that share the adding of one dimension's partial sums
constexpr int SUM_THREADS = GROUPS * D;

template <int N>
struct alignas(N * sizeof(Real)) Pack {
    Real at[N];
};

// Read N consecutive elements in loads of WIDE; both pointers' alignment allows that.
template <int N, int WIDE>
__device__ inline void load(Real (&to)[N], const Real* from) {
#pragma unroll
    for (int n = 0; n < N; n += WIDE) {
        const Pack<WIDE> pack = *reinterpret_cast<const Pack<WIDE>*>(from + n);
#pragma unroll
        for (int w = 0; w < WIDE; w++) to[n + w] = pack.at[w];
    }
}

// ---- Where a thread stands: dimensions first..first+DIMS-1 of output capsule j, for images lane, lane + LANES, ...

struct Place {
    int row, j, first, lane;
    bool works;  // threads beyond the last row only help to load

    __device__ Place()
        : row(threadIdx.x / LANES),
          j(row / CHUNKS),
          first(row % CHUNKS * DIMS),
          lane(threadIdx.x % LANES),
          works(row < ROWS) {}
    __device__ bool has(int d) const { return D % DIMS == 0 || first + d < D; }
};

template <int IMAGES_>
__device__ inline void read_capsules(
    Real (&to)[IMAGES_][DIMS], const Real* capsules, const Place& at, int image0, int images) {
#pragma unroll
    for (int m = 0; m < IMAGES_; m++) {
        const int b = image0 + at.lane + m * LANES;
#pragma unroll
        for (int d = 0; d < DIMS; d++)
            to[m][d] = at.works && b < images && at.has(d) ? capsules[((Index)b * J + at.j) * D + at.first + d] : 0;
    }
}

// ---- Shared memory of a block: all arrays one after another, as backends/_cupy_kernels.py counts them.

extern __shared__ __align__(16) unsigned char shared_memory[];

template <int TILE_, int IMAGES_, int STAGE_, bool STAGED_, bool BACK>
struct Shared {
    static constexpr int BATCH = LANES * IMAGES_, PITCH = padded(BATCH);
    static constexpr int WEIGHTS = STAGED_ ? STAGE_ * J * D * K : 0;
    static constexpr int VOTES = PRODUCT || BACK ? TILE_ * COLUMNS * PITCH : 0;
    Real *weight;        // [STAGE, J, D, K]
    Real *u;             // [STAGE, K, PITCH]
    Real *votes;         // [TILE, COLUMNS, PITCH]; in `gradients` also their gradient
    Real *parts;         // [1 or 2, TILE, ROWS, PITCH]  û · V, and û · gradient, of each chunk of dimensions
    Real *coefficients;  // [1 or 2, TILE, J, PITCH]     c, and the gradient of the logits

    __device__ explicit Shared(unsigned char* memory) {
        weight = reinterpret_cast<Real*>(memory);
        u = weight + (WEIGHTS + 3) / 4 * 4;
        votes = u + (STAGE_ * K * PITCH + 3) / 4 * 4;
        parts = votes + VOTES;
        coefficients = parts + 2 * TILE_ * ROWS * PITCH;
    }
};

// Copy inputs of `capsules` capsules from `capsule0` on, for the block's images; zero where there are none.
template <int STAGE_, int BATCH, int PITCH>
__device__ inline void stage_inputs(
    Real* to, const Real* u, int image0, int images, int capsule0, int capsules, int n_in) {
    for (int n = threadIdx.x; n < BATCH * STAGE_ * K; n += blockDim.x) {
        const int b = n / (STAGE_ * K), k = n % (STAGE_ * K);
        const bool there = image0 + b < images && k < capsules * K;
        to[k * PITCH + b] = there ? u[((Index)(image0 + b) * n_in + capsule0) * K + k] : 0;
    }
}

__device__ inline void stage_weights(Real* to, const Real* weight, int capsules) {
    for (int n = WIDTH * threadIdx.x; n < capsules * J * D * K; n += WIDTH * blockDim.x)
        *reinterpret_cast<Pack<WIDTH>*>(to + n) = *reinterpret_cast<const Pack<WIDTH>*>(weight + n);
}

// ---- Votes û = W u of a tile of input capsules, in registers; zero from capsule number `capsules` on.

#if PRODUCT && !defined(CUDA_ON_CPU)
__device__ inline unsigned tensor_operand(float low, float high) {
    unsigned bits;
#if PRODUCT == 1
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#endif
    return bits;
}

__device__ inline void tensor_product(float (&c)[4], const unsigned* a, const unsigned* b) {
#if PRODUCT == 1
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#endif
}
#endif

#if PRODUCT
// One warp multiplies 16 images by 8 columns (j, d) at a time: lane = 4·group + member, as PTX lays out m16n8k8.
template <int TILE_, int BATCH, int PITCH>
__device__ inline void tensor_votes(Real* votes, const Real* weight, const Real* u, int capsules) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    const int down = BATCH / 16, across = COLUMNS / 8;
    for (int n = warp; n < capsules * down * across; n += THREADS / 32) {
        const int t = n / (down * across), b = n / across % down * 16 + group, column = n % across * 8 + group;
        const Real *x = u + t * K * PITCH + b, *w = weight + ((Index)t * J * D + column) * K;
        const auto x_at = [=](int k, int below) { return k < K ? x[k * PITCH + below] : 0; };
        const auto w_at = [=](int k) { return k < K && column < J * D ? w[k] : 0; };
        float c[4] = {0, 0, 0, 0};
        for (int k0 = 0; k0 < K; k0 += 8) {
            unsigned a[4], v[2];
#if PRODUCT == 1
            const int k = k0 + member;
            for (int half = 0; half < 2; half++) {
                a[2 * half] = tensor_operand(x_at(k + 4 * half, 0), 0);
                a[2 * half + 1] = tensor_operand(x_at(k + 4 * half, 8), 0);
                v[half] = tensor_operand(w_at(k + 4 * half), 0);
            }
#else
            const int k = k0 + 2 * member;
            a[0] = tensor_operand(x_at(k, 0), x_at(k + 1, 0));
            a[1] = tensor_operand(x_at(k, 8), x_at(k + 1, 8));
            v[0] = tensor_operand(w_at(k), w_at(k + 1));
#endif
            tensor_product(c, a, v);
        }
        Real* to = votes + (t * COLUMNS + n % across * 8 + 2 * member) * PITCH + b;
        to[0] = c[0], to[PITCH] = c[1], to[8] = c[2], to[PITCH + 8] = c[3];
    }
}
#endif

template <int TILE_, int IMAGES_, int PITCH>
__device__ inline void make_votes(
    Real (&votes)[TILE_][IMAGES_][DIMS], Real* shared_votes, const Real* weight, const Real* u, const Place& at,
    int capsules) {
#if PRODUCT
    __syncthreads();  // the votes before these have been read by all
    tensor_votes<TILE_, LANES * IMAGES_, PITCH>(shared_votes, weight, u, capsules);
    __syncthreads();
#endif
#pragma unroll
    for (int t = 0; t < TILE_; t++)
#pragma unroll
        for (int m = 0; m < IMAGES_; m++)
#pragma unroll
            for (int d = 0; d < DIMS; d++) votes[t][m][d] = 0;
#pragma unroll
    for (int t = 0; t < TILE_; t++) {
        if (t >= capsules || !at.works) continue;
#if PRODUCT
#pragma unroll
        for (int m = 0; m < IMAGES_; m++)
#pragma unroll
            for (int d = 0; d < DIMS; d++)
                if (at.has(d))
                    votes[t][m][d] =
                        shared_votes[(t * COLUMNS + at.j * D + at.first + d) * PITCH + at.lane + m * LANES];
#else
        for (int k = 0; k < K; k += DEPTH) {
            Real x[IMAGES_][DEPTH];
#pragma unroll
            for (int m = 0; m < IMAGES_; m++)
#pragma unroll
                for (int kk = 0; kk < DEPTH; kk++) x[m][kk] = u[(t * K + k + kk) * PITCH + at.lane + m * LANES];
#pragma unroll
            for (int d = 0; d < DIMS; d++) {
                if (!at.has(d)) continue;
                Real w[DEPTH];
                load<DEPTH, WIDTH>(w, weight + (((Index)t * J + at.j) * D + at.first + d) * K + k);
#pragma unroll
                for (int m = 0; m < IMAGES_; m++)
#pragma unroll
                    for (int kk = 0; kk < DEPTH; kk++) votes[t][m][d] += w[kk] * x[m][kk];
            }
        }
#endif
    }
}

// ---- Coupling coefficients: the softmax over output capsules, and the gradient through it.

template <int TILE_, int IMAGES_, int PITCH>
__device__ inline void write_parts(
    Real* parts, const Real (&votes)[TILE_][IMAGES_][DIMS], const Real (&capsules)[IMAGES_][DIMS], const Place& at) {
    if (!at.works) return;
#pragma unroll
    for (int t = 0; t < TILE_; t++)
#pragma unroll
        for (int m = 0; m < IMAGES_; m++) {
            Real part = 0;
#pragma unroll
            for (int d = 0; d < DIMS; d++) part += votes[t][m][d] * capsules[m][d];
            parts[(t * ROWS + at.row) * PITCH + at.lane + m * LANES] = part;
        }
}

// Coefficients [0] become c = softmax of the first parts; with BACK, coefficients [1] the gradient of the logits,
// c (g - Σ_j c g), for the gradient g of c in the second parts. A thread takes one image and input capsule.
template <int TILE_, int BATCH, int PITCH, bool BACK>
__device__ inline void couple(Real* coefficients, const Real* parts) {
    const int beyond = TILE_ * J * PITCH, parts_beyond = TILE_ * ROWS * PITCH;
    for (int n = threadIdx.x; n < TILE_ * BATCH; n += blockDim.x) {
        const int t = n / BATCH, b = n % BATCH;
        Real* c = coefficients + t * J * PITCH + b;
        const Real* part = parts + t * ROWS * PITCH + b;
        const auto whole = [](const Real* p, int j) {
            Real sum = 0;
            for (int q = 0; q < CHUNKS; q++) sum += p[(j * CHUNKS + q) * PITCH];
            return sum;
        };
        Real largest = LEAKY ? 0 : whole(part, 0), total = 0, mean = 0;
        for (int j = 0; j < J; j++) {
            const Real logit = whole(part, j);
            largest = logit > largest ? logit : largest;  // NaN goes on to the exponentials
            c[j * PITCH] = logit;
        }
        for (int j = 0; j < J; j++) total += c[j * PITCH] = exp(c[j * PITCH] - largest);
        if (LEAKY) total += exp(-largest);
        for (int j = 0; j < J; j++) {
            c[j * PITCH] /= total;
            if (BACK) {
                const Real g = whole(part + parts_beyond, j);
                c[j * PITCH + beyond] = g;
                mean += c[j * PITCH] * g;
            }
        }
        if (BACK)
            for (int j = 0; j < J; j++) c[j * PITCH + beyond] = c[j * PITCH] * (c[j * PITCH + beyond] - mean);
    }
}

// ---- One iteration. FIRST: uniform couplings; BACK: Σ_i (gradient of the logits)_ij û_ij in place of s_j.

template <bool FIRST, bool BACK>
__device__ inline void route(
    const Real* u, const Real* weight, const Real* total, const Real* gradient, Real* partial, int images, int n_in,
    int per_split) {
    typedef Shared<TILE, IMAGES, STAGE, STAGED, false> Memory;
    constexpr int BATCH = Memory::BATCH, PITCH = Memory::PITCH;
    const Memory shared(shared_memory);
    const Place at;
    const int tiles = (images + BATCH - 1) / BATCH, split = blockIdx.x / tiles, image0 = blockIdx.x % tiles * BATCH;
    const int end = n_in < (split + 1) * per_split ? n_in : (split + 1) * per_split;
    Real s[IMAGES][DIMS] = {}, v[IMAGES][DIMS], g[IMAGES][DIMS];
    if (!FIRST) read_capsules<IMAGES>(v, total, at, image0, images);
    if (BACK) read_capsules<IMAGES>(g, gradient, at, image0, images);
    for (int i = split * per_split; i < end; i += STAGE) {
        const int staged = end - i < STAGE ? end - i : STAGE;
        __syncthreads();  // the stage before this has been read by all
        stage_inputs<STAGE, BATCH, PITCH>(shared.u, u, image0, images, i, staged, n_in);
        const Real* w = weight + (Index)i * J * D * K;
        if (STAGED) stage_weights(shared.weight, w, staged);
        __syncthreads();
        for (int t0 = 0; t0 < staged; t0 += TILE) {
            Real votes[TILE][IMAGES][DIMS];
            make_votes<TILE, IMAGES, PITCH>(
                votes, shared.votes, (STAGED ? shared.weight : w) + (Index)t0 * J * D * K, shared.u + t0 * K * PITCH,
                at, staged - t0 < TILE ? staged - t0 : TILE);
            if (!FIRST) {
                write_parts<TILE, IMAGES, PITCH>(shared.parts, votes, v, at);
                if (BACK) write_parts<TILE, IMAGES, PITCH>(shared.parts + TILE * ROWS * PITCH, votes, g, at);
                __syncthreads();
                couple<TILE, BATCH, PITCH, BACK>(shared.coefficients, shared.parts);
                __syncthreads();
            }
            if (!at.works) continue;
            const Real* c = shared.coefficients + (BACK ? TILE * J * PITCH : 0) + at.j * PITCH + at.lane;
#pragma unroll
            for (int t = 0; t < TILE; t++)
#pragma unroll
                for (int m = 0; m < IMAGES; m++) {
                    const Real weighed = FIRST ? Real(1) / (J + LEAKY) : c[t * J * PITCH + m * LANES];
#pragma unroll
                    for (int d = 0; d < DIMS; d++) s[m][d] += weighed * votes[t][m][d];
                }
        }
    }
#pragma unroll
    for (int m = 0; m < IMAGES; m++) {
        const int b = image0 + at.lane + m * LANES;
        if (!at.works || b >= images) continue;
#pragma unroll
        for (int d = 0; d < DIMS; d++)
            if (at.has(d)) partial[(((Index)split * images + b) * J + at.j) * D + at.first + d] = s[m][d];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    route_first(const Real* u, const Real* weight, Real* partial, int images, int n_in, int per_split) {
    route<true, false>(u, weight, nullptr, nullptr, partial, images, n_in, per_split);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    route_next(
        const Real* u, const Real* weight, const Real* total, Real* partial, int images, int n_in, int per_split) {
    route<false, false>(u, weight, total, nullptr, partial, images, n_in, per_split);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    route_back(
        const Real* u, const Real* weight, const Real* total, const Real* gradient, Real* partial, int images,
        int n_in, int per_split) {
    route<false, true>(u, weight, total, gradient, partial, images, n_in, per_split);
}

// ---- Between two iterations: add the partial sums of one output capsule [D] of one image, and squash. One block
// each, its threads GROUPS × D.

__device__ inline Real add_partial_sums(const Real* partial, int splits, Index stride) {
    Real* sums = reinterpret_cast<Real*>(shared_memory);  // [SUM_THREADS]
    const int d = threadIdx.x % D, group = threadIdx.x / D;
    Real sum = 0;
    for (int n = group; n < splits; n += GROUPS) sum += partial[n * stride + (Index)blockIdx.x * D + d];
    sums[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int n = 0; n < GROUPS; n++) sum += sums[n * D + d];
    return sum;
}

// What squash (equation 1) takes of a vector: its length n, the largest entry divided out, and p = n / (1 + n).
struct Length {
    Real n, p, q, factor;  // n²/(1+n²) · 1/n = p / (q (1 + n)), q = p² + (1-p)²: no square leaves the range of floats

    __device__ explicit Length(const Real* s) {
        Real largest = 0, sum = 0;
        for (int d = 0; d < D; d++) {
            const Real size = s[d] < 0 ? -s[d] : s[d];
            largest = size > largest || size != size ? size : largest;
        }
        const Real scale = largest == 0 ? 1 : largest;
        for (int d = 0; d < D; d++) sum += s[d] / scale * (s[d] / scale);
        n = sqrt(sum) * scale;
        p = n / (n + 1);
        q = p * (p - 1) * 2 + 1;
        factor = p / (q * (n + 1));
    }
};

// s = Σ partial + bias; total = squash(s), added to `before` where there is one. bias [J, D] or null.
extern "C" __global__ void squash_sums(
    const Real* partial, const Real* bias, const Real* before, Real* s, Real* total, int images, int splits) {
    Real* vector = reinterpret_cast<Real*>(shared_memory) + SUM_THREADS;  // [D]
    const int d = threadIdx.x % D;
    const Index n = (Index)blockIdx.x * D + d;
    Real sum = add_partial_sums(partial, splits, (Index)images * J * D);
    if (bias) sum += bias[n % (J * D)];
    if (threadIdx.x < D) vector[d] = sum;
    __syncthreads();
    if (threadIdx.x >= D) return;
    s[n] = sum;
    total[n] = sum * Length(vector).factor + (before ? before[n] : 0);
}

// after = Σ partial (+ before), the gradient of v; gradient = what squash hands back of it, the gradient of s.
extern "C" __global__ void squash_back(
    const Real* partial, const Real* before, const Real* s, Real* after, Real* gradient, int images, int splits) {
    Real *vector = reinterpret_cast<Real*>(shared_memory) + SUM_THREADS, *product = vector + D;  // [D] each
    const int d = threadIdx.x % D;
    const Index n = (Index)blockIdx.x * D + d;
    const Real g = add_partial_sums(partial, splits, (Index)images * J * D) + (before ? before[n] : 0);
    if (threadIdx.x < D) vector[d] = s[n];
    __syncthreads();
    const Length length(vector);
    const Real unit = vector[d] / (length.n == 0 ? 1 : length.n);
    if (threadIdx.x < D) product[d] = unit * g;
    __syncthreads();
    if (threadIdx.x >= D) return;
    Real along = 0;
    for (int each = 0; each < D; each++) along += product[each];
    after[n] = g;
    gradient[n] = length.factor * (g + unit * (along * (1 - 2 * length.p) / length.q));
}

// ---- The gradients of u and W. A block owns BACK_TILE input capsules and walks over the images of its split.

// ∂u_i = Σ_j W_ijᵀ ∂û_ij: a thread takes one image, one input capsule and DEPTH of its dimensions.
template <int PITCH>
__device__ inline void input_gradients(
    Real* du, const Real* votes, const Real* weight, int image0, int images, int capsule0, int capsules, int n_in) {
    for (int n = threadIdx.x; n < capsules * (K / DEPTH) * LANES; n += blockDim.x) {
        const int b = n % LANES, k = n / LANES % (K / DEPTH) * DEPTH, t = n / LANES / (K / DEPTH);
        if (image0 + b >= images) continue;
        Real sums[DEPTH] = {};
        for (int jd = 0; jd < J * D; jd++) {
            Real w[DEPTH];
            load<DEPTH, WIDTH>(w, weight + ((Index)t * J * D + jd) * K + k);
            const Real vote = votes[(t * COLUMNS + jd) * PITCH + b];
#pragma unroll
            for (int kk = 0; kk < DEPTH; kk++) sums[kk] += w[kk] * vote;
        }
        Real* to = du + ((Index)(image0 + b) * n_in + capsule0 + t) * K + k;
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk++) to[kk] = sums[kk];
    }
}

// ∂W_ij += Σ_b ∂û_ij ⊗ u_i: a thread takes one row (j, d) of one input capsule and DEPTH of its columns. The same
// thread takes it for every tile of images, so what it reads back is its own.
template <int PITCH>
__device__ inline void weight_gradients(Real* dweight, const Real* votes, const Real* u, int capsules, bool first) {
    for (int n = threadIdx.x; n < capsules * (K / DEPTH) * J * D; n += blockDim.x) {
        const int jd = n % (J * D), k = n / (J * D) % (K / DEPTH) * DEPTH, t = n / (J * D) / (K / DEPTH);
        Real* to = dweight + ((Index)t * J * D + jd) * K + k;
        Real sums[DEPTH];
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk++) sums[kk] = first ? 0 : to[kk];
        for (int b = 0; b < LANES; b += STEP) {
            Real vote[STEP];
            load<STEP, STEP>(vote, votes + (t * COLUMNS + jd) * PITCH + b);
#pragma unroll
            for (int kk = 0; kk < DEPTH; kk++) {
                Real x[STEP];
                load<STEP, STEP>(x, u + (t * K + k + kk) * PITCH + b);
#pragma unroll
                for (int each = 0; each < STEP; each++) sums[kk] += vote[each] * x[each];
            }
        }
#pragma unroll
        for (int kk = 0; kk < DEPTH; kk++) to[kk] = sums[kk];
    }
}

// totals [R, B, J, D]: V of the next iteration at each but the last; gradient [R, B, J, D]: those of all s.
// dweight [splits, N, J, D, K].
extern "C" __global__ void __launch_bounds__(THREADS)
    gradients(
        const Real* u, const Real* weight, const Real* totals, const Real* gradient, Real* du, Real* dweight,
        int images, int n_in, int iterations, int splits, int per_split) {
    typedef Shared<BACK_TILE, 1, BACK_TILE, BACK_STAGED, true> Memory;
    constexpr int PITCH = Memory::PITCH;
    const Memory shared(shared_memory);
    const Place at;
    const Index layer = (Index)images * J * D;
    const int i = blockIdx.x / splits * BACK_TILE, split = blockIdx.x % splits;
    const int capsules = n_in - i < BACK_TILE ? n_in - i : BACK_TILE;
    const int start = split * per_split, end = images < start + per_split ? images : start + per_split;
    const Real* w = weight + (Index)i * J * D * K;
    if (BACK_STAGED) stage_weights(shared.weight, w, capsules);
    w = BACK_STAGED ? shared.weight : w;
    dweight += ((Index)split * n_in + i) * J * D * K;
    for (int image0 = start; image0 < end; image0 += LANES) {
        __syncthreads();  // the images before these are done with
        stage_inputs<BACK_TILE, LANES, PITCH>(shared.u, u, image0, end, i, capsules, n_in);
        __syncthreads();
        Real votes[BACK_TILE][1][DIMS], sums[BACK_TILE][DIMS], v[1][DIMS], g[1][DIMS];
        if (iterations > 1)
            make_votes<BACK_TILE, 1, PITCH>(votes, shared.votes, w, shared.u, at, capsules);
        read_capsules<1>(g, gradient, at, image0, end);
#pragma unroll
        for (int t = 0; t < BACK_TILE; t++)
#pragma unroll
            for (int d = 0; d < DIMS; d++) sums[t][d] = Real(1) / (J + LEAKY) * g[0][d];
        for (int r = 1; r < iterations; r++) {
            read_capsules<1>(v, totals + (r - 1) * layer, at, image0, end);
            read_capsules<1>(g, gradient + r * layer, at, image0, end);
            write_parts<BACK_TILE, 1, PITCH>(shared.parts, votes, v, at);
            write_parts<BACK_TILE, 1, PITCH>(shared.parts + BACK_TILE * ROWS * PITCH, votes, g, at);
            __syncthreads();
            couple<BACK_TILE, LANES, PITCH, true>(shared.coefficients, shared.parts);
            __syncthreads();
            if (!at.works) continue;
            const Real* c = shared.coefficients + at.j * PITCH + at.lane;
#pragma unroll
            for (int t = 0; t < BACK_TILE; t++) {
                const Real coupling = c[t * J * PITCH], logit = c[(BACK_TILE + t) * J * PITCH];
#pragma unroll
                for (int d = 0; d < DIMS; d++) sums[t][d] += coupling * g[0][d] + logit * v[0][d];
            }
        }
#pragma unroll
        for (int t = 0; t < BACK_TILE; t++)
#pragma unroll
            for (int d = 0; d < DIMS; d++)
                if (at.works && at.has(d))
                    shared.votes[(t * COLUMNS + at.j * D + at.first + d) * PITCH + at.lane] = sums[t][d];
        __syncthreads();
        input_gradients<PITCH>(du, shared.votes, w, image0, end, i, capsules, n_in);
        weight_gradients<PITCH>(dweight, shared.votes, shared.u, capsules, image0 == start);
    }
}
