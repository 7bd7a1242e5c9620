// Writer of a verdict as one line of JSON.
#pragma once

#include <ostream>

#include "contract.h"

namespace anomaly {

inline void write_json(std::ostream& out, const std::vector<Region>& regions) {
    const char* between = "";
    out << "[";
    for (const Region& region : regions) {
        out << between << "{\"x\": " << region.x << ", \"y\": " << region.y << ", \"width\": " << region.width
            << ", \"height\": " << region.height << ", \"area\": " << region.area << ", \"peak\": " << region.peak
            << ", \"weak\": " << (region.weak ? "true" : "false") << "}";
        between = ", ";
    }
    out << "]";
}

inline void write_json(std::ostream& out, const Verdict& verdict) {
    out << "{\"score\": " << verdict.score << ", \"threshold\": " << verdict.threshold << ", \"verdict\": \""
        << (verdict.defect ? "defect" : "good") << "\", \"regions\": ";
    write_json(out, verdict.regions);
    out << ", \"map_maximum\": " << verdict.map_maximum << "}\n";
}

}  // namespace anomaly
