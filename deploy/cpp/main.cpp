// Scores one buffer from a file and prints the verdict as a line of JSON. Exit codes: 0 scored, 1 failed, 2 wrong usage.
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "scorer.h"
#include "verdict_json.h"

namespace {

constexpr const char* usage =
    "anomaly_score MODEL.onnx BUFFER mono8|mono16|rgb8|bgr8 WIDTH HEIGHT STRIDE\n"
    "              [--threshold T] [--device cpu|cuda] [--golden]\n"
    "  BUFFER       camera buffer in a file: HEIGHT rows of STRIDE bytes\n"
    "  --threshold  threshold of the verdict; the model's own is 1\n"
    "  --golden     BUFFER is the model's golden image: fail unless its score equals the score at export\n";

const std::map<std::string, anomaly::Pixels> formats{{"mono8", anomaly::Pixels::mono8},
                                                     {"mono16", anomaly::Pixels::mono16},
                                                     {"rgb8", anomaly::Pixels::rgb8},
                                                     {"bgr8", anomaly::Pixels::bgr8}};

template <typename Number>
bool is_number(const std::string& text, Number& value) {
    std::istringstream stream(text);
    return static_cast<bool>(stream >> value) && stream.peek() == std::istringstream::traits_type::eof();
}

int wrong_usage() {
    std::cerr << usage;
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> given(argv + 1, argv + argc);
    anomaly::Buffer image{};
    if (given.size() < 6 || !formats.count(given[2]) || !is_number(given[3], image.width) ||
        !is_number(given[4], image.height) || !is_number(given[5], image.stride))
        return wrong_usage();
    image.pixels = formats.at(given[2]);
    double threshold = 1.0;
    auto device = anomaly::Device::cpu;
    bool golden = false;
    for (std::size_t n = 6; n < given.size(); ++n) {
        const bool has_value = n + 1 < given.size();
        if (given[n] == "--golden") {
            golden = true;
        } else if (given[n] == "--threshold" && has_value && is_number(given[n + 1], threshold)) {
            ++n;
        } else if (given[n] == "--device" && has_value && (given[n + 1] == "cpu" || given[n + 1] == "cuda")) {
            device = given[++n] == "cuda" ? anomaly::Device::cuda : anomaly::Device::cpu;
        } else {
            return wrong_usage();
        }
    }
    try {
        anomaly::Scorer scorer(given[0], device);
        std::ifstream file(given[1], std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        image.data = bytes.data();
        if (image.stride < 0 || image.height < 0 || bytes.size() < static_cast<std::size_t>(image.stride) * static_cast<std::size_t>(image.height))
            throw std::invalid_argument(given[1] + " has " + std::to_string(bytes.size()) + " bytes, fewer than its rows need");
        if (golden) scorer.check_golden(image);
        std::cout.precision(9);  // exact for float
        anomaly::write_json(std::cout, scorer.score(image, threshold));
    } catch (const std::exception& error) {
        std::cerr << "anomaly_score: " << error.what() << "\n";
        return 1;
    }
    return 0;
}
