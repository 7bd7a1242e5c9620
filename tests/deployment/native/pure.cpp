// Test driver of the C++ example without ONNX Runtime: one line of standard output for each line of standard input.
//     pack FORMAT FILE OFFSET WIDTH HEIGHT STRIDE WHITE           -> packed bytes, hexadecimal
//     judge FILE MAP_HEIGHT MAP_WIDTH HEIGHT WIDTH RESIZE SCORE THRESHOLD -> verdict; FILE holds one float per map pixel
//     metadata FILE                                               -> metadata of lines KEY=VALUE
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>

#include "contract.h"
#include "verdict_json.h"

namespace {

std::vector<char> bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void pack(std::istream& in) {
    const std::map<std::string, anomaly::Pixels> formats{{"mono8", anomaly::Pixels::mono8},
                                                         {"mono16", anomaly::Pixels::mono16},
                                                         {"rgb8", anomaly::Pixels::rgb8},
                                                         {"bgr8", anomaly::Pixels::bgr8}};
    std::string format, path;
    std::ptrdiff_t offset = 0;
    anomaly::Buffer buffer{};
    int white = 0;
    in >> format >> path >> offset >> buffer.width >> buffer.height >> buffer.stride >> white;
    const std::vector<char> bytes = bytes_of(path);
    buffer.data = bytes.data() + offset;
    buffer.pixels = formats.at(format);
    std::vector<std::uint8_t> rgb(3 * static_cast<std::size_t>(buffer.width) * static_cast<std::size_t>(buffer.height));
    anomaly::pack_rgb(buffer, white, rgb.data());
    for (const std::uint8_t value : rgb) std::printf("%02x", value);
    std::printf("\n");
}

void judge(std::istream& in) {
    std::string path, resize, score, threshold;
    anomaly::Map map{};
    int height = 0, width = 0;
    in >> path >> map.height >> map.width >> height >> width >> resize >> score >> threshold;
    const std::vector<char> bytes = bytes_of(path);
    map.values.resize(bytes.size() / sizeof(float));
    std::memcpy(map.values.data(), bytes.data(), bytes.size());
    const auto how = resize == "stretch" ? anomaly::Resize::stretch : anomaly::Resize::letterbox;
    std::ostringstream out;
    out.precision(9);
    anomaly::write_json(out, anomaly::judge(std::stof(score), map, height, width, how, std::stod(threshold)));
    std::printf("%s", out.str().c_str());
}

void metadata(std::istream& in) {
    std::string path, line;
    in >> path;
    std::map<std::string, std::string> stored;
    for (std::ifstream file(path); std::getline(file, line);) stored[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
    const anomaly::Metadata read = anomaly::read_metadata([&](const std::string& key) {
        const auto found = stored.find(key);
        return found == stored.end() ? std::nullopt : std::optional<std::string>(found->second);
    });
    std::ostringstream out;
    out.precision(17);
    out << (read.resize == anomaly::Resize::stretch ? "stretch" : "letterbox") << " " << read.white << " " << read.alpha << " "
        << read.golden_score << " " << read.golden_map_maximum;
    for (const auto& [provider, tolerance] : read.golden_tolerance) out << " " << provider << " " << tolerance;
    for (const std::int64_t length : read.fixed) out << " " << length;
    std::printf("%s\n", out.str().c_str());
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream in(line);
        std::string command;
        in >> command;
        try {
            command == "pack" ? pack(in) : command == "judge" ? judge(in) : metadata(in);
        } catch (const std::exception& error) {
            std::printf("error: %s\n", error.what());
        }
    }
}
