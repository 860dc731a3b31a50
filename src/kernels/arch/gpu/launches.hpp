// What can be chosen about launches. Plain C++, for the bindings too.
#pragma once

namespace convnet {

// Whether a kernel may start before the one in front of it has ended; for measurements and in search of a fault.
inline bool programmatic_launches = true;

inline void set_programmatic_launches(bool on) { programmatic_launches = on; }

}  // namespace convnet
