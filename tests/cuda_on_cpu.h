// A block of CUDA threads on one thread of the CPU: enough of CUDA C++ for backends/kernels.cu, compiled by
//     g++ -std=c++17 -include tests/cuda_on_cpu.h -x c++ backends/kernels.cu
// Each CUDA thread is a coroutine that runs until it waits at a barrier, so what kernels do between two barriers is
// run in an order that `launch` is given: whatever races gives another answer in another order. Shared memory is full
// of NaN when a block starts, and writing past what was asked for ends the process, as a barrier not all reach does.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)

using std::exp;
using std::sqrt;

struct Dim {
    int x;
};
static Dim threadIdx, blockIdx, blockDim;
unsigned char shared_memory[256 * 1024] __attribute__((aligned(16)));

namespace cuda_on_cpu {

struct Barrier {
    int waiting = 0, generation = 0;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(256 * 1024);
    bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static Barrier block;
static std::vector<Barrier> warps;
static std::vector<std::uint32_t> operands;  // [threads, 4 + 2] of a tensor core's product
static bool moved;
static void* kernel;
static const std::int64_t* a;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "cuda_on_cpu: %s, block %d\n", what, blockIdx.x);
    std::abort();
}

inline void wait(Barrier& barrier, int members) {
    const int generation = barrier.generation;
    if (++barrier.waiting == members) {
        barrier.waiting = 0;
        barrier.generation++;
        moved = true;
        return;
    }
    const int me = threadIdx.x;
    while (barrier.generation == generation) swapcontext(&fibers[me].context, &scheduler);
}

// Every argument is a pointer or an int, which the calling conventions of x86-64 and AArch64 Linux pass in 8 bytes,
// and a function may be given more arguments than it looks at.
inline void run() {
    typedef std::int64_t I;
    reinterpret_cast<void (*)(I, I, I, I, I, I, I, I, I, I, I, I)>(kernel)(
        a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    fibers[threadIdx.x].done = moved = true;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

inline void run_block(int threads, bool backwards) {
    for (int t = 0; t < threads; t++) {
        Fiber& fiber = fibers[t];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.done = false;
        makecontext(&fiber.context, run, 0);
    }
    int left = threads;
    while (left) {
        moved = false;
        left = 0;
        for (int n = 0; n < threads; n++) {
            const int t = backwards ? threads - 1 - n : n;
            if (fibers[t].done) continue;
            threadIdx.x = t;
            swapcontext(&scheduler, &fibers[t].context);
            left += !fibers[t].done;
        }
        if (!moved) fail("a barrier that not all threads reach");
    }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::block, blockDim.x); }

// Launch a kernel. `arguments` has room for 12.
extern "C" void launch(
    void* kernel, int grid, int threads, int shared, const std::int64_t* arguments, int backwards) {
    using namespace cuda_on_cpu;
    cuda_on_cpu::kernel = kernel;
    a = arguments;
    blockDim.x = threads;
    if (fibers.size() < static_cast<std::size_t>(threads)) fibers.resize(threads);
    warps.assign((threads + 31) / 32, Barrier());
    operands.assign(threads * 6, 0);
    for (int n = 0; n < grid; n++) {
        blockIdx.x = backwards ? grid - 1 - n : n;
        block = Barrier();
        std::memset(shared_memory, 0xff, sizeof shared_memory);
        run_block(threads, backwards);
        for (std::size_t byte = shared; byte < sizeof shared_memory; byte++)
            if (shared_memory[byte] != 0xff) fail("wrote past the end of shared memory");
    }
}

// ---- Tensor cores, from the layouts of mma.m16n8k8 in the PTX manual; no code of the kernel's own takes part.

#if PRODUCT
inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline std::uint32_t tensor_operand(float low, float high) {
#if PRODUCT == 1  // cvt.rna: to nearest, halves away from zero
    (void)high;
    return (bits_of(low) + 0x1000) & ~0x1fffu;
#else  // cvt.rn: to nearest even
    const auto half = [](float x) { return (bits_of(x) + 0x7fff + (bits_of(x) >> 16 & 1)) >> 16; };
    return half(low) | half(high) << 16;
#endif
}

inline void tensor_product(float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
    using namespace cuda_on_cpu;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    std::uint32_t* mine = &operands[threadIdx.x * 6];
    const int of_a = PRODUCT == 1 ? 4 : 2, of_b = PRODUCT == 1 ? 2 : 1;
    std::memcpy(mine, a, 4 * of_a);
    std::memcpy(mine + 4, b, 4 * of_b);
    wait(warps[warp], 32);
    const std::uint32_t* all = &operands[warp * 32 * 6];
    const auto a_at = [=](int row, int k) {
#if PRODUCT == 1
        return float_of(all[(row % 8 * 4 + k % 4) * 6 + row / 8 + k / 4 * 2]);
#else
        return float_of(all[(row % 8 * 4 + k / 2) * 6 + row / 8] >> 16 * (k % 2) << 16);
#endif
    };
    const auto b_at = [=](int k, int column) {
#if PRODUCT == 1
        return float_of(all[(column * 4 + k % 4) * 6 + 4 + k / 4]);
#else
        return float_of(all[(column * 4 + k / 2) * 6 + 4] >> 16 * (k % 2) << 16);
#endif
    };
    for (int n = 0; n < 4; n++)
        for (int k = 0; k < 8; k++) c[n] += a_at(lane / 4 + n / 2 * 8, k) * b_at(k, lane % 4 * 2 + n % 2);
    wait(warps[warp], 32);
}
#endif
