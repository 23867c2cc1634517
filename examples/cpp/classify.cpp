// Classify an 8-bit PGM or PPM image (P5, P6) of the network's size with an exported model:
//
//     classify digits.onnx digit.pgm
//
// prints the length of every class capsule. Needs ONNX Runtime's C++ headers and library, 1.14 or later.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

// Pixels as [C, H, W] in [0, 1]; the file has them as [H, W, C] in 0..255.
std::vector<float> read_image(const char* path, const std::vector<int64_t>& shape) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();  // the one white space before the pixels
    const int64_t channels = magic == "P5" ? 1 : magic == "P6" ? 3 : 0;
    if (!file || largest != 255 || channels != shape[1] || height != shape[2] || width != shape[3]) {
        throw std::runtime_error(std::string(path) + ": not an 8-bit PGM or PPM of " + std::to_string(shape[1]) + "x" +
                                 std::to_string(shape[2]) + "x" + std::to_string(shape[3]));
    }
    std::vector<unsigned char> bytes(channels * height * width);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        throw std::runtime_error(std::string(path) + ": the pixels are cut short");
    }
    std::vector<float> pixels(bytes.size());
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < height * width; ++i) {
            pixels[c * height * width + i] = bytes[i * channels + c] / 255.0f;
        }
    }
    return pixels;
}

int main(int argc, char** argv) try {
    if (argc != 3) {
        throw std::runtime_error("usage: classify MODEL.onnx IMAGE.pgm");
    }
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "capscore");
    Ort::SessionOptions options;
    // On a GPU: OrtCUDAProviderOptions cuda; options.AppendExecutionProvider_CUDA(cuda);
    Ort::Session session(env, argv[1], options);

    Ort::TypeInfo taken = session.GetInputTypeInfo(0);
    std::vector<int64_t> shape = taken.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[0] > 1 ||
        taken.GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        throw std::runtime_error(std::string(argv[1]) + ": not an export that takes images one at a time, as floats");
    }
    shape[0] = 1;  // the batch: -1 in the file, any number will do
    std::vector<float> pixels = read_image(argv[2], shape);
    Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value images =
        Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());

    const char* inputs[] = {"images"};
    const char* outputs[] = {"lengths"};
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions{nullptr}, inputs, &images, 1, outputs, 1);
    const float* lengths = found[0].GetTensorData<float>();
    const size_t classes = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
    for (size_t j = 0; j < classes; ++j) {
        std::printf("%zu %.6f\n", j, lengths[j]);
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
