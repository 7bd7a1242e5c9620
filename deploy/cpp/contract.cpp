#include "contract.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "json.h"

namespace anomaly {
namespace {

constexpr int known_contract = 3;
constexpr double slack = 1e-6;  // tolerance in map pixels at the end of a letterbox's padding

struct Tap {
    int first, second;
    float share;  // weight of the second
};

// Finds the two neighbours of each of `num_pixels` pixels among `num_map_pixels` map pixels.
std::vector<Tap> taps(int num_pixels, int num_map_pixels, double scale) {
    // Only map pixels with their centre on the image count; an image below one map pixel uses the two around it.
    const double low = std::ceil((num_map_pixels - num_pixels * scale) / 2 - 0.5 - slack);
    const double least = std::min(low, num_map_pixels - 1 - low), most = std::max(low, num_map_pixels - 1 - low);
    std::vector<Tap> found(static_cast<std::size_t>(num_pixels));
    for (int n = 0; n < num_pixels; ++n) {
        const double centre = (n + 0.5 - num_pixels / 2.0) * scale + num_map_pixels / 2.0 - 0.5;
        const double place = std::clamp(centre, least, most);
        const int first = static_cast<int>(place);
        found[static_cast<std::size_t>(n)] = {first, std::min(first + 1, num_map_pixels - 1), static_cast<float>(place - first)};
    }
    return found;
}

// Collects the 8-connected region around `start` and clears it in `inside`.
Region take_region(const Map& map, std::vector<char>& inside, std::size_t start, bool weak) {
    const auto stride = static_cast<std::size_t>(map.width);
    int left = map.width, right = -1, top = map.height, bottom = -1;
    Region region{0, 0, 0, 0, 0, map.values[start], weak};
    std::vector<std::size_t> open{start};
    inside[start] = 0;
    while (!open.empty()) {
        const std::size_t at = open.back();
        open.pop_back();
        const int x = static_cast<int>(at % stride), y = static_cast<int>(at / stride);
        left = std::min(left, x), right = std::max(right, x), top = std::min(top, y), bottom = std::max(bottom, y);
        region.peak = std::max(region.peak, map.values[at]);
        ++region.area;
        for (int v = std::max(0, y - 1); v <= std::min(map.height - 1, y + 1); ++v)
            for (int u = std::max(0, x - 1); u <= std::min(map.width - 1, x + 1); ++u) {
                const std::size_t next = static_cast<std::size_t>(v) * stride + static_cast<std::size_t>(u);
                if (!inside[next]) continue;
                inside[next] = 0;
                open.push_back(next);
            }
    }
    std::tie(region.x, region.y) = std::tie(left, top);
    region.width = right - left + 1;
    region.height = bottom - top + 1;
    return region;
}

float median(std::vector<float> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    if (values.size() % 2) return *middle;
    return (*std::max_element(values.begin(), middle) + *middle) / 2.0f;
}

}  // namespace

Metadata read_metadata(const std::function<std::optional<std::string>(const std::string&)>& stored) {
    const auto read = [&stored](const std::string& key) {
        const auto value = stored("anomaly." + key);
        if (!value) throw std::runtime_error("the file has no 'anomaly." + key + "': make it with `anomaly export`");
        return Json::parse(*value);
    };
    const auto has = [&stored](const std::string& key) {
        const auto value = stored("anomaly." + key);
        return value && *value != "null";
    };
    const double contract = read("contract").as_number();
    if (contract != known_contract)
        throw std::runtime_error("the file follows contract " + std::to_string(static_cast<int>(contract)) +
                                 ", this program reads contract " + std::to_string(known_contract) + ": export it again");
    if (read("kind").as_text() != "detector")
        throw std::runtime_error("the file is a " + read("kind").as_text() + ": use the model.onnx beside it");
    if (has("tiling"))
        throw std::runtime_error("the file is a model for large images: score it with `anomaly score`");
    const std::string resize = read("resize").as_text();
    if (resize != "stretch" && resize != "letterbox")
        throw std::runtime_error("the resize '" + resize + "' is not supported: export the model again");
    const Json golden = read("golden");
    Metadata metadata{};
    metadata.resize = resize == "stretch" ? Resize::stretch : Resize::letterbox;
    metadata.white = static_cast<int>(read("white").as_number());
    metadata.alpha = read("alpha").as_number();
    const Json fixed = has("fixed") ? read("fixed") : Json::parse("[]");
    for (const Json& length : fixed.as_items()) metadata.fixed.push_back(static_cast<std::int64_t>(length.as_number()));
    if (metadata.fixed.size() != 0 && metadata.fixed.size() != 3) 
        throw std::runtime_error("'fixed' does not have three sizes: export the model again");
    metadata.golden_score = golden.at("score").as_number();
    metadata.golden_map_maximum = golden.at("map_maximum").as_number();
    if (golden.as_members().count("tolerance"))
        for (const auto& [provider, tolerance] : golden.at("tolerance").as_members())
            metadata.golden_tolerance[provider] = tolerance.as_number();
    return metadata;
}

void pack_rgb(const Buffer& buffer, int white, std::uint8_t* rgb) {
    const int channels = buffer.pixels == Pixels::rgb8 || buffer.pixels == Pixels::bgr8 ? 3 : 1;
    const int bytes = buffer.pixels == Pixels::mono16 ? 2 : channels;
    if (!buffer.data || buffer.width < 1 || buffer.height < 1)
        throw std::invalid_argument("a buffer of " + std::to_string(buffer.width) + "x" + std::to_string(buffer.height) +
                                    " pixels holds no image: give pixels and sizes of at least 1");
    if (std::abs(buffer.stride) < static_cast<std::ptrdiff_t>(bytes) * buffer.width)
        throw std::invalid_argument("a stride of " + std::to_string(buffer.stride) + " bytes is less than a row of " +
                                    std::to_string(buffer.width) + " pixels: give the distance between rows in bytes");
    for (int y = 0; y < buffer.height; ++y) {
        const auto* row = static_cast<const std::uint8_t*>(buffer.data) + y * buffer.stride;
        for (int x = 0; x < buffer.width; ++x, rgb += 3) {
            const std::uint8_t* pixel = row + static_cast<std::ptrdiff_t>(bytes) * x;
            switch (buffer.pixels) {
                case Pixels::rgb8: rgb[0] = pixel[0], rgb[1] = pixel[1], rgb[2] = pixel[2]; break;
                case Pixels::bgr8: rgb[0] = pixel[2], rgb[1] = pixel[1], rgb[2] = pixel[0]; break;
                case Pixels::mono8: rgb[0] = rgb[1] = rgb[2] = pixel[0]; break;
                case Pixels::mono16: {
                    std::uint16_t value;
                    std::memcpy(&value, pixel, sizeof value);
                    const std::int64_t grey = (2 * 255 * std::int64_t{value} + white) / (2 * std::int64_t{white});
                    rgb[0] = rgb[1] = rgb[2] = static_cast<std::uint8_t>(std::min<std::int64_t>(grey, 255));
                }
            }
        }
    }
}

Map enlarge(const Map& map, int height, int width, Resize resize) {
    if (map.height == height && map.width == width) return map;
    double scale_y = static_cast<double>(map.height) / height, scale_x = static_cast<double>(map.width) / width;
    if (resize == Resize::letterbox) scale_y = scale_x = std::min(scale_y, scale_x);
    const std::vector<Tap> columns = taps(width, map.width, scale_x), rows = taps(height, map.height, scale_y);
    const auto size = static_cast<std::size_t>(width);
    std::vector<float> wide(static_cast<std::size_t>(map.height) * size);  // each row of the map enlarged along x
    for (int y = 0; y < map.height; ++y) {
        const float* row = map.values.data() + static_cast<std::ptrdiff_t>(y) * map.width;
        for (std::size_t x = 0; x < size; ++x)
            wide[static_cast<std::size_t>(y) * size + x] =
                row[columns[x].first] * (1 - columns[x].share) + row[columns[x].second] * columns[x].share;
    }
    Map enlarged{height, width, std::vector<float>(static_cast<std::size_t>(height) * size)};
    float* to = enlarged.values.data();
    for (const Tap& row : rows) {
        const float* top = wide.data() + static_cast<std::size_t>(row.first) * size;
        const float* bottom = wide.data() + static_cast<std::size_t>(row.second) * size;
        for (std::size_t x = 0; x < size; ++x) *to++ = top[x] + (bottom[x] - top[x]) * row.share;
    }
    return enlarged;
}

std::vector<Region> find_regions(const Map& enlarged, double threshold, bool rejected) {
    const std::size_t size = enlarged.values.size();
    const auto select = [&enlarged, size](auto is_inside) {
        std::vector<char> inside(size);
        for (std::size_t n = 0; n < size; ++n) inside[n] = is_inside(enlarged.values[n]);
        return inside;
    };
    std::vector<char> inside = select([above = static_cast<float>(threshold)](float value) { return value > above; });
    std::vector<Region> found;
    for (std::size_t n = 0; n < size; ++n)
        if (inside[n]) found.push_back(take_region(enlarged, inside, n, false));
    if (found.empty() && rejected) {
        const auto top = std::max_element(enlarged.values.begin(), enlarged.values.end());
        const double middle = (double{median(enlarged.values)} + double{*top}) / 2;
        inside = select([least = static_cast<float>(middle)](float value) { return value >= least; });
        found.push_back(take_region(enlarged, inside, static_cast<std::size_t>(top - enlarged.values.begin()), true));
    }
    std::stable_sort(found.begin(), found.end(), [](const Region& a, const Region& b) {
        return std::tuple(-a.peak, a.y, a.x) < std::tuple(-b.peak, b.y, b.x);
    });
    return found;
}

Verdict judge(float score, const Map& map, int height, int width, Resize resize, double threshold) {
    const bool finite = std::all_of(map.values.begin(), map.values.end(), [](float value) { return std::isfinite(value); });
    if (!std::isfinite(score) || !finite) throw std::runtime_error("the score or the map is not finite: use another device");
    const float maximum = *std::max_element(map.values.begin(), map.values.end());
    Verdict verdict{score, threshold, score > threshold, maximum, {}};
    if (verdict.defect || maximum > threshold)
        verdict.regions = find_regions(enlarge(map, height, width, resize), threshold, verdict.defect);
    return verdict;
}

}  // namespace anomaly
