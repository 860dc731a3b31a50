// Argument checks of the launchers. A failed check names the operation, the rule, the values and the remedy.
#pragma once
#include <atomic>
#include <sstream>
#include <stdexcept>
#include <string>

namespace convnet {

// Joins its arguments into one string: message("C must divide by groups, got C=", C, " groups=", groups).
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Throws std::invalid_argument (ValueError in Python) unless `condition` holds.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(message(parts...));
}

// While true, launchers do all that they do in front of a launch (checks, the choice of a kernel, tensor maps, shared
// memory) and start nothing: what the driver refuses shows before any kernel runs.
inline std::atomic<bool>& only_checking() {
  static std::atomic<bool> only{false};
  return only;
}

}  // namespace convnet
