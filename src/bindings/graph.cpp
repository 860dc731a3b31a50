// The module convnet.kernels._gpu: the ops, and what only GPUs have: how kernels are launched, and CUDA graphs, for which pycuda has
// no interface: what is queued on capturing streams, launched again and again.
//
// Capture begins on one stream; others join by waiting for one of its events, also those of other devices, and must be
// waited for in turn before it ends. Every node stays on the device of the stream it was queued on.
#include <cuda_runtime_api.h>

#include <memory>

#include "../kernels/arch/gpu/error.hpp"
#include "../kernels/arch/gpu/launches.hpp"
#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {
namespace {

class Graph {
 public:
  explicit Graph(cudaGraph_t graph) {
    cuda_check(cudaGraphInstantiateWithFlags(&executable_, graph, 0), "instantiating a graph");
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(Stream stream) const {
    cuda_check(cudaGraphLaunch(executable_, stream), "launching a graph");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

// Relaxed: Python's garbage collector may free memory at any moment, and other threads go about their own business.
// What must not happen in a capture is for convnet/devices/protocol.py to forbid.
void begin_capture(Stream stream) {
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capturing a graph");
}

// Ends the capture on all streams that joined it, also where it fails.
std::unique_ptr<Graph> end_capture(Stream stream) {
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamEndCapture(stream, &graph), "capturing a graph");
  const std::unique_ptr<CUgraph_st, void (*)(cudaGraph_t)> owner(
      graph, [](cudaGraph_t captured) { cudaGraphDestroy(captured); });
  return std::make_unique<Graph>(graph);
}

}  // namespace
}  // namespace convnet::bindings

PYBIND11_MODULE(_gpu, m) {
  using namespace convnet;
  using namespace convnet::bindings;
  register_all(m);
  register_checking(m);
  py::class_<Graph>(m, "Graph")
      .def(
          "launch",
          [](const Graph& graph, const py::object& stream) {
            const Stream on = Argument<Stream>::convert("Graph.launch", "stream", stream);
            const py::gil_scoped_release unlocked;
            graph.launch(on);
          },
          py::arg("stream"));
  bind(m, "begin_capture", &begin_capture, {"stream"});
  bind(m, "end_capture", &end_capture, {"stream"});
  bind(m, "set_programmatic_launches", &set_programmatic_launches, {"on"});
}
