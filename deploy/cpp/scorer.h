// A model in ONNX Runtime: from a camera's buffer to a verdict with regions.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>

#include "contract.h"

namespace anomaly {

enum class Device { cpu, cuda };

class Scorer {
public:
    // Throws std::runtime_error for a file of another contract. Throws Ort::Exception if ONNX Runtime cannot load the file or
    // does not have the device. There is no fallback to another device.
    Scorer(const std::filesystem::path& model, Device device);

    const Metadata& metadata() const { return metadata_; }

    // Judges one image; the model's own threshold is 1. Throws std::invalid_argument for an invalid buffer, or for a size that a
    // fixed model does not take. Not thread-safe.
    Verdict score(const Buffer& image, double threshold = 1.0);

    // Scores the model's golden image. Throws std::runtime_error if the result differs from the result at export: verdicts of
    // this runtime are then invalid.
    void check_golden(const Buffer& golden);

private:
    Ort::Env env_;
    Ort::Session session_;
    Metadata metadata_;
    std::string provider_;
    std::vector<std::uint8_t> rgb_;
};

}  // namespace anomaly
