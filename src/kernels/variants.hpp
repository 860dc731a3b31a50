// Which of its kernels an op takes: rows of a table, in order of preference (tile/variants.cuh).
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "shapes.hpp"

namespace convnet {

// A row as users see it.
struct VariantRow {
  std::string op, name;
  Precision precision;
  int architecture;        // see tile/variants.cuh
  std::string tile, when;  // rows x columns; what shapes it takes
};

// Names of rows that ops must take, for tests and measurements.
class ForcedVariants {
 public:
  std::string of(const std::string& op) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = names_.find(op);
    return found == names_.end() ? "" : found->second;
  }
  void set(const std::string& op, const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    names_[op] = name;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::string> names_;
};

inline ForcedVariants& forced_variants() {
  static ForcedVariants forced;
  return forced;
}

// `op` takes this row from now on, whatever stands in front of it; an error in shapes that the row
// cannot take. An empty name: the table decides again.
inline void force_variant(const std::string& op, const std::string& name) {
  forced_variants().set(op, name);
}

}  // namespace convnet
