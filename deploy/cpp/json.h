// Reader of the metadata's JSON (RFC 8259). Numbers become double. The last of duplicate names counts.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace anomaly {

struct Json {
    enum class Kind { null, boolean, number, text, array, object };

    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string text;  // UTF-8
    std::vector<Json> items;
    std::map<std::string, Json> members;

    // Throws std::runtime_error for invalid JSON.
    static Json parse(std::string_view source);

    // Each throws std::runtime_error if the value has another kind.
    double as_number() const;
    const std::string& as_text() const;
    const std::vector<Json>& as_items() const;
    const std::map<std::string, Json>& as_members() const;
    const Json& at(const std::string& name) const;  // member of an object
};

}  // namespace anomaly
