// Classify an 8-bit PGM or PPM image (P5, P6) with an exported model:
//
//     classify digits.onnx digit.pgm
//
// prints the score of every class, by name. Size, colours, class names and scale are those of the model's own metadata.
// Needs ONNX Runtime's C++ headers and library, 1.14 or later, and nlohmann/json.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int64_t channels, height, width;
    std::vector<unsigned char> bytes;  // [C, H, W]
};

// The file has its pixels as [H, W, C].
Image read_image(const char* path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    Image image{};
    int64_t largest = 0;
    file >> magic >> image.width >> image.height >> largest;
    file.get();  // the one white space before the pixels
    image.channels = magic == "P5" ? 1 : magic == "P6" ? 3 : 0;
    if (!file || largest != 255 || !image.channels || image.width < 1 || image.height < 1) {
        throw std::runtime_error(std::string(path) + ": not an 8-bit PGM or PPM");
    }
    const int64_t size = image.height * image.width;
    std::vector<unsigned char> pixels(image.channels * size);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()))) {
        throw std::runtime_error(std::string(path) + ": the pixels are cut short");
    }
    image.bytes.resize(pixels.size());
    for (int64_t c = 0; c < image.channels; ++c) {
        for (int64_t i = 0; i < size; ++i) {
            image.bytes[c * size + i] = pixels[i * image.channels + c];
        }
    }
    return image;
}

std::string size_of(int64_t channels, int64_t height, int64_t width) {
    return std::to_string(channels) + "x" + std::to_string(height) + "x" + std::to_string(width);
}

// What the model says of itself: the JSON that capscore writes into every export.
nlohmann::json about(const Ort::Session& session, const char* path) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("capscore", allocator);
    if (!text) {
        throw std::runtime_error(std::string(path) + ": it has no capscore metadata; `capscore export` writes files that do");
    }
    return nlohmann::json::parse(text.get());
}

int main(int argc, char** argv) try {
    if (argc != 3) {
        throw std::runtime_error("usage: classify MODEL.onnx IMAGE.pgm");
    }
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "capscore");
    Ort::SessionOptions options;
    // On a GPU: OrtCUDAProviderOptions cuda; options.AppendExecutionProvider_CUDA(cuda);
    Ort::Session session(env, argv[1], options);
    const nlohmann::json model = about(session, argv[1]);
    const std::vector<std::string> classes = model.at("classes");
    const float scale = model.at("preprocessing").at("scale");

    Ort::TypeInfo taken = session.GetInputTypeInfo(0);
    std::vector<int64_t> shape = taken.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[0] > 1) {
        throw std::runtime_error(std::string(argv[1]) + ": not an export that takes images one at a time");
    }
    shape[0] = 1;  // the batch: -1 in the file, any number will do
    Image image = read_image(argv[2]);
    if (image.channels != shape[1] || image.height != shape[2] || image.width != shape[3]) {
        throw std::runtime_error(std::string(argv[2]) + ": it is " + size_of(image.channels, image.height, image.width) +
                                 ", the model takes " + size_of(shape[1], shape[2], shape[3]));
    }
    std::vector<float> pixels(image.bytes.begin(), image.bytes.end());
    for (float& pixel : pixels) {
        pixel *= scale;
    }
    Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const bool bytes = taken.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    Ort::Value images = bytes ? Ort::Value::CreateTensor<uint8_t>(memory, image.bytes.data(), image.bytes.size(),
                                                                  shape.data(), shape.size())
                              : Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(),
                                                                shape.size());

    Ort::AllocatorWithDefaultOptions allocator;
    std::string score = "lengths";  // of the capsules, unless the network has scores of its own
    for (size_t i = 0; i < session.GetOutputCount(); ++i) {
        if (session.GetOutputNameAllocated(i, allocator).get() == std::string("scores")) {
            score = "scores";
        }
    }
    const char* inputs[] = {"images"};
    const char* outputs[] = {score.c_str()};
    std::vector<Ort::Value> found = session.Run(Ort::RunOptions{nullptr}, inputs, &images, 1, outputs, 1);
    for (size_t j = 0; j < classes.size(); ++j) {
        std::printf("%s %.6f\n", classes[j].c_str(), found[0].GetTensorData<float>()[j]);
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
