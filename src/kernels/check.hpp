// Argument checks of the launchers. A failed check names the operation, the rule, the values and the remedy.
#pragma once
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

}  // namespace convnet
