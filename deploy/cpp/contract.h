// The steps before and after the graph, without ONNX Runtime: pixels of a camera's buffer, verdict and regions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace anomaly {

enum class Pixels { mono8, mono16, rgb8, bgr8 };  // mono16: in this machine's byte order

// An image in the memory of a camera's SDK. `data` points to the top row. `stride` is the distance between rows in
// bytes; it may exceed the pixels of a row, and it is negative for images stored bottom up.
struct Buffer {
    const void* data;
    int width;
    int height;
    std::ptrdiff_t stride;
    Pixels pixels;
};

enum class Resize { stretch, letterbox };

struct Metadata {
    Resize resize;
    int white;  // stored value of a 16-bit image that becomes 255
    double alpha;  // guarantee: largest share of good parts that is rejected
    std::vector<std::int64_t> fixed;  // images, height and width of a fixed graph; empty for any
    double golden_score;
    double golden_map_maximum;
    std::map<std::string, double> golden_tolerance;  // execution provider -> tolerance
};

struct Map {
    int height;
    int width;
    std::vector<float> values;  // row by row, calibrated: 0 is a typical good part, 1 the threshold
};

// A connected region of the enlarged map, in pixels of the image.
struct Region {
    int x, y, width, height;
    std::int64_t area;  // number of pixels
    float peak;  // maximum of the map in the region
    bool weak;  // no pixel is above the threshold: the region around the map's maximum
};

struct Verdict {
    float score;
    double threshold;
    bool defect;
    float map_maximum;
    std::vector<Region> regions;  // strongest first
};

// Reads the metadata. `stored` returns the value of a key of the model's custom metadata. Throws std::runtime_error for a
// foreign file, another contract, a model for large images and a sampler.
Metadata read_metadata(const std::function<std::optional<std::string>(const std::string&)>& stored);

// Writes height × width × 3 bytes RGB. Throws std::invalid_argument for an invalid buffer.
void pack_rgb(const Buffer& buffer, int white, std::uint8_t* rgb);

// Enlarges a map to the size of its image, bilinear with half-pixel centres.
Map enlarge(const Map& map, int height, int width, Resize resize);

// Finds the 8-connected regions above the threshold. A rejected image without such a region gets a weak region: the pixels around
// the map's maximum that are above the mean of the map's median and maximum.
std::vector<Region> find_regions(const Map& enlarged, double threshold, bool rejected);

// Judges one image of height × width pixels. Throws std::runtime_error for a score or map that is not finite: NaN would pass
// as good.
Verdict judge(float score, const Map& map, int height, int width, Resize resize, double threshold);

}  // namespace anomaly
