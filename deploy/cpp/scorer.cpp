#include "scorer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <stdexcept>

namespace anomaly {
namespace {

constexpr double default_tolerance = 1e-3;

Ort::SessionOptions options_for(Device device) {
    Ort::SessionOptions options;
    if (device == Device::cpu) return options;
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&cuda));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(OrtApi::ReleaseCUDAProviderOptions)> owned(
        cuda, Ort::GetApi().ReleaseCUDAProviderOptions);
    const char* const name = "use_tf32";  // TF32 keeps 10 bits of each factor, and scores would exceed the tolerance
    const char* const value = "0";
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(cuda, &name, &value, 1));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
    return options;
}

Metadata metadata_of(const Ort::Session& session) {
    const Ort::ModelMetadata stored = session.GetModelMetadata();
    Ort::AllocatorWithDefaultOptions allocator;
    return read_metadata([&](const std::string& key) -> std::optional<std::string> {
        const auto value = stored.LookupCustomMetadataMapAllocated(key.c_str(), allocator);
        return value ? std::optional<std::string>(value.get()) : std::nullopt;
    });
}

}  // namespace

Scorer::Scorer(const std::filesystem::path& model, Device device)
    : env_(ORT_LOGGING_LEVEL_ERROR, "anomaly"),
      session_(env_, model.c_str(), options_for(device)),
      metadata_(metadata_of(session_)),
      provider_(device == Device::cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider") {}

Verdict Scorer::score(const Buffer& image, double threshold) {
    if (!std::isfinite(threshold)) throw std::invalid_argument("the threshold is not finite: give a number");
    const std::vector<std::int64_t>& fixed = metadata_.fixed;
    if (!fixed.empty() && (fixed[1] != image.height || fixed[2] != image.width))
        throw std::invalid_argument("the model is fixed to " + std::to_string(fixed[2]) + "x" + std::to_string(fixed[1]) +
                                    " pixels: give images of that size");
    const std::array<std::int64_t, 4> shape{fixed.empty() ? 1 : fixed[0], image.height, image.width, 3};
    const std::size_t size = std::size_t{3} * static_cast<std::size_t>(std::max(image.width, 0)) *
                             static_cast<std::size_t>(std::max(image.height, 0));
    rgb_.resize(size * static_cast<std::size_t>(shape[0]));
    pack_rgb(image, metadata_.white, rgb_.data());
    for (std::size_t at = size; at < rgb_.size(); at += size)  // a fixed graph needs its number of images
        std::copy_n(rgb_.begin(), size, rgb_.begin() + static_cast<std::ptrdiff_t>(at));
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<std::uint8_t>(memory, rgb_.data(), rgb_.size(), shape.data(), shape.size());
    const std::array<const char*, 1> inputs{"image"};
    const std::array<const char*, 2> outputs{"score", "anomaly_map"};
    const auto output = session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &input, 1, outputs.data(), outputs.size());
    const std::vector<std::int64_t> lengths = output[1].GetTensorTypeAndShapeInfo().GetShape();  // n, h, w
    const float* values = output[1].GetTensorData<float>();
    const Map map{static_cast<int>(lengths.at(1)), static_cast<int>(lengths.at(2)),
                  std::vector<float>(values, values + lengths.at(1) * lengths.at(2))};
    return judge(output[0].GetTensorData<float>()[0], map, image.height, image.width, metadata_.resize, threshold);
}

void Scorer::check_golden(const Buffer& golden) {
    const Verdict verdict = score(golden);
    const auto stored = metadata_.golden_tolerance.find(provider_);
    const double tolerance = stored == metadata_.golden_tolerance.end() ? default_tolerance : stored->second;
    const auto check = [&](const char* name, double expected, double actual) {
        if (!(std::abs(expected - actual) / std::max(1.0, std::abs(expected)) <= tolerance))
            throw std::runtime_error(std::string("the golden image's ") + name + " is " + std::to_string(actual) +
                                     ", at export " + std::to_string(expected) + ": this runtime computes other results; use another one");
    };
    check("score", metadata_.golden_score, verdict.score);
    check("map's maximum", metadata_.golden_map_maximum, verdict.map_maximum);
}

}  // namespace anomaly
