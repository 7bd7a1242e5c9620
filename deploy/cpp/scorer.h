// A model file in ONNX Runtime: a camera's buffer in, a verdict with regions out.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>

#include "contract.h"

namespace anomaly {

enum class Device { cpu, cuda };

class Scorer {
public:
    // Throws std::runtime_error on a file that is not of the known contract, Ort::Exception where ONNX Runtime cannot load it
    // or has no such device. There is no fall-back to another device.
    Scorer(const std::filesystem::path& model, Device device);

    const Metadata& metadata() const { return metadata_; }

    // Judges one image; the model's own limit is 1. Throws std::invalid_argument on a buffer that cannot be, or is not of the
    // size that a fixed model takes. One call at a time.
    Verdict score(const Buffer& image, double limit = 1.0);

    // Scores the model's golden image again. Throws std::runtime_error where this runtime says of it something else than was
    // said at export: then verdicts are not to be trusted.
    void check_golden(const Buffer& golden);

private:
    Ort::Env env_;
    Ort::Session session_;
    Metadata metadata_;
    std::string provider_;
    std::vector<std::uint8_t> rgb_;
};

}  // namespace anomaly
