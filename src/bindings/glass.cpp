// The module convnet.kernels._glass: the ops in an emulator whose kernels tell of every load and store.
#include "../kernels/emu/glass.hpp"

#include "../kernels/emu/launch.hpp"
#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {
namespace {

py::tuple extents(emu::Index index) { return py::make_tuple(index.x, index.y, index.z); }

py::list numbers(const std::vector<bool>& threads) {
  py::list found;
  for (std::size_t i = 0; i < threads.size(); ++i)
    if (threads[i]) found.append(i);
  return found;
}

py::dict source(const emu::Site& site) {
  py::dict found;
  found["file"] = site.file_name(), found["line"] = site.line(), found["column"] = site.column();
  return found;
}

py::dict as_dict(const emu::Accesses& accesses) {
  py::dict found;
  found["operation"] = accesses.operation, found["write"] = accesses.write;
  found["array"] = accesses.array, found["warp"] = accesses.warp, found["bytes"] = accesses.bytes;
  found["code"] = accesses.place.code, found["site"] = source(accesses.place.site);
  found["requests"] = accesses.requests, found["asked"] = accesses.asked;
  found["used"] = accesses.used, found["sectors"] = accesses.sectors;
  found["wavefronts"] = accesses.wavefronts, found["fewest"] = accesses.fewest;
  py::list places;
  for (const std::int64_t at : accesses.worst_at) places.append(at);
  found["worst"] = accesses.worst, found["worst_at"] = places;
  return found;
}

py::dict as_dict(const emu::Call& call) {
  py::dict found;
  found["operation"] = call.operation, found["site"] = source(call.site);
  found["launch"] = call.launch, found["calls"] = call.calls;
  found["threads"] = numbers(call.threads);
  return found;
}

py::dict as_dict(const emu::Use& use) {
  py::dict found;
  found["operation"] = use.operation, found["site"] = source(use.site), found["count"] = use.count;
  found["bytes"] = use.bytes, found["threads"] = numbers(use.threads);
  return found;
}

template <class T>
py::list as_list(const std::vector<T>& values, py::dict (*as_dict)(const T&)) {
  py::list found;
  for (const T& value : values) found.append(as_dict(value));
  return found;
}

py::dict as_dict(const emu::WatchedBarrier& barrier) {
  py::dict found;
  found["kind"] = barrier.kind, found["at"] = barrier.at, found["arrivals"] = barrier.arrivals;
  found["phases"] = barrier.phases, found["uses"] = as_list(barrier.uses, as_dict);
  return found;
}

py::dict as_dict(const emu::Fill& fill) {
  py::dict found;
  found["begin"] = fill.begin, found["end"] = fill.end, found["bytes"] = fill.bytes;
  found["issued"] = fill.issued, found["landed"] = fill.landed;
  found["first_read"] = fill.first_read, found["last_read"] = fill.last_read;
  return found;
}

py::dict as_dict(const emu::WatchedLaunch& launch) {
  py::dict found;
  found["kernel"] = launch.kernel, found["grid"] = extents(launch.grid);
  found["block"] = extents(launch.block), found["shared_bytes"] = launch.shared_bytes;
  found["cluster"] = launch.cluster;
  found["accesses"] = as_list(launch.accesses, as_dict),
  found["barriers"] = as_list(launch.barriers, as_dict);
  found["fills"] = as_list(launch.fills, as_dict);
  return found;
}

}  // namespace
}  // namespace convnet::bindings

PYBIND11_MODULE(_glass, m) {
  using namespace convnet::bindings;
  register_all(m);
  bind(m, "seed_order", &convnet::emu::seed_order, {"seed"});
  m.def(
      "watch",
      [](const py::list& arrays) {
        std::vector<convnet::emu::WatchedArray> watched;
        for (const auto& array : arrays) {
          const auto [address, bytes] = array.cast<std::pair<std::uintptr_t, std::size_t>>();
          watched.push_back({reinterpret_cast<const unsigned char*>(address), bytes});
        }
        convnet::emu::watch(std::move(watched));
      },
      py::arg("arrays"));
  m.def("watched", [] {
    const convnet::emu::Watched watched = convnet::emu::watched();
    return py::make_tuple(as_list(watched.launches, as_dict), as_list(watched.calls, as_dict));
  });
  m.def("leave_out", &convnet::emu::leave_out, py::arg("file"), py::arg("line"), py::arg("column"));
}
