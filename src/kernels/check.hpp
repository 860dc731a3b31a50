// Argument checks of the launchers. A failed check names the operation, the rule, the values and the remedy.
#pragma once
#include <atomic>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

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

// What the driver refused of the launch that this thread prepares while it is only checking.
inline std::string& refusals() {
  static thread_local std::string text;
  return text;
}

// Throws std::runtime_error; or, while only checking, leaves that to end_check(), so that all refusals of a launch show.
inline void refuse(const std::string& text) {
  if (!only_checking()) throw std::runtime_error(text);
  refusals() += (refusals().empty() ? "" : "; ") + text;
}

// What a launch ends with while only checking.
inline void end_check() {
  const std::string text = std::exchange(refusals(), "");
  if (!text.empty()) throw std::runtime_error(text);
}

}  // namespace convnet
