// What lies around the graph, without ONNX Runtime: a camera's buffer before it, verdict and regions after it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace anomaly {

enum class Pixels { mono8, mono16, rgb8, bgr8 };  // mono16: in the order of this machine's bytes

// An image in memory, as a camera's SDK hands it over. `data` is the top row; rows begin `stride` bytes apart, which may be
// more than their pixels need, or negative where the image lies bottom up.
struct Buffer {
    const void* data;
    int width;
    int height;
    std::ptrdiff_t stride;
    Pixels pixels;
};

enum class Resize { squash, letterbox };

struct Metadata {
    Resize resize;
    int white;  // stored value of a 16-bit image that becomes 255
    double alpha;  // the promise: the share of good parts that may be rejected
    std::vector<std::int64_t> fixed;  // images at a time, height and width that a graph takes; empty: any
    double golden_score;
    double golden_map_maximum;
    std::map<std::string, double> golden_tolerance;  // by execution provider
};

struct Map {
    int height;
    int width;
    std::vector<float> values;  // row by row, calibrated: 0 a typical good part, 1 the limit
};

// A connected region of the enlarged map, in pixels of the image.
struct Region {
    int x, y, width, height;
    std::int64_t area;  // pixels above the limit
    float peak;  // largest value of the map in it
    bool weak;  // no pixel is above the limit: the region is the one around the map's maximum
};

struct Verdict {
    float score;
    double limit;
    bool defect;
    float map_maximum;
    std::vector<Region> regions;  // strongest first
};

// Reads the metadata; `stored` gives the value of a key of the model's custom metadata. Throws std::runtime_error on a
// foreign file, or one of a contract that this code does not know.
Metadata read_metadata(const std::function<std::optional<std::string>(const std::string&)>& stored);

// Writes height × width × 3 bytes RGB. Throws std::invalid_argument on a buffer that cannot be.
void pack_rgb(const Buffer& buffer, int white, std::uint8_t* rgb);

// Enlarges a map to its image, bilinear with half-pixel centres.
Map enlarge(const Map& map, int height, int width, Resize resize);

// Finds the 8-connected regions above the limit. A rejected image without one gets the region around the map's maximum,
// above the middle between the map's median and its maximum.
std::vector<Region> find_regions(const Map& enlarged, double limit, bool rejected);

// Judges one image of height × width pixels. Throws std::runtime_error where score or map is not finite: NaN would pass for
// good.
Verdict judge(float score, const Map& map, int height, int width, Resize resize, double limit);

}  // namespace anomaly
