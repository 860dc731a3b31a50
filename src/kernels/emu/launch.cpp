#include "launch.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "../check.hpp"
#include "cluster.hpp"
#include "glass.hpp"

namespace convnet::emu {
namespace {

std::atomic<uint64_t> order_seed{1};
std::atomic<int> wanted_threads{0};
std::atomic<int> played_architecture{90};
std::atomic<int> noted_multiprocessors{0};  // 0: launches run
std::vector<Noted> noted;

// Clusters with their stacks, kept from launch to launch. One launch uses each on one OS thread only; between two launches
// nothing is on the stacks, so that the next OS thread may be another one.
std::mutex pool_mutex;
std::vector<std::unique_ptr<Cluster>> pool;

std::unique_ptr<Cluster> take_cluster() {
  const std::lock_guard lock(pool_mutex);
  if (pool.empty()) return std::make_unique<Cluster>();
  std::unique_ptr<Cluster> cluster = std::move(pool.back());
  pool.pop_back();
  return cluster;
}

void give_back(std::unique_ptr<Cluster> cluster) {
  const std::lock_guard lock(pool_mutex);
  pool.push_back(std::move(cluster));
}

void check(const Launch& launch) {
  const auto [x, y, z] = launch.block;
  const uint64_t threads = uint64_t{x} * y * z;
  const Index grid = launch.grid;
  if (threads == 0 || threads > 1024 || x > 1024 || y > 1024 || z > 64)
    throw std::runtime_error(message("launch from ", describe(launch.site),
                                     ": a block has 1 to 1024 threads, got ",
                                     describe(launch.block)));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    throw std::runtime_error(message("launch from ", describe(launch.site),
                                     ": a grid has 1 to 2147483647 x 65535 x 65535 blocks, got ",
                                     describe(grid)));
  if (uint64_t{grid.x} * grid.y * grid.z >= uint64_t{1} << 32)
    throw std::runtime_error(message("launch from ", describe(launch.site),
                                     ": the emulator takes fewer than 2^32 blocks, got ",
                                     describe(grid)));
  if (launch.cluster < 1 || launch.cluster > kMostClusterBlocks || grid.x % launch.cluster != 0)
    throw std::runtime_error(message("launch from ", describe(launch.site), ": a cluster has 1 to ",
                                     kMostClusterBlocks,
                                     " blocks and divides the grid's first size, got ",
                                     launch.cluster, " and a grid of ", describe(grid)));
  if (launch.cluster > 1 && played_architecture < 90)
    throw std::runtime_error(message("launch from ", describe(launch.site),
                                     ": clusters need sm_90, but the machine is sm_",
                                     played_architecture, "; choose kernels by architecture()"));
  if (launch.shared_bytes > 232448)
    throw std::runtime_error(message("launch from ", describe(launch.site),
                                     ": a block has at most 232448 bytes of shared memory, got ",
                                     launch.shared_bytes));
}

}  // namespace

void seed_order(uint64_t seed) { order_seed = seed; }

void set_threads(int count) { wanted_threads = std::max(count, 0); }

int threads() {
  const int wanted = wanted_threads;
  return wanted > 0 ? wanted
                    : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
}

void run_launch(Launch& launch) {
  if (here != nullptr) fail("a kernel cannot launch a kernel");
  check(launch);
  if (only_checking()) return end_check();
  launch.seed = order_seed;
  launch.clusters = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z / launch.cluster;
  launch.step = launch.seed * 0x9e3779b97f4a7c15u >> 32;
  while (std::gcd(launch.step, launch.clusters) != 1) ++launch.step;
  launch.step %= launch.clusters;
  if (watching) watch_launch(launch);

  std::mutex error_mutex;
  std::string error;
  const auto work = [&] {
    std::string failure;
    try {
      std::unique_ptr<Cluster> cluster = take_cluster();
      failure = cluster->run(launch);
      if (failure.empty()) {
        give_back(std::move(cluster));
        return;
      }
    } catch (const std::exception& out_of_memory) {  // must not leave a helper's thread
      failure = out_of_memory.what();
    }
    launch.failed = true;
    const std::lock_guard lock(error_mutex);
    if (error.empty()) error = failure;
  };
  {
    std::vector<std::jthread> helpers;
    const uint64_t wanted =
        watching ? 1 : std::min<uint64_t>(launch.clusters, static_cast<uint64_t>(threads()));
    for (uint64_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
  }
  if (!error.empty())
    throw std::runtime_error(
        message("emulator: kernel launched by ", describe(launch.site), ", ", error));
}

void note_launches(int multiprocessors) {
  require(multiprocessors >= 1, "note_launches: there must be at least 1 multiprocessor, got ",
          multiprocessors);
  noted.clear();
  noted_multiprocessors = multiprocessors;
}

std::vector<Noted> noted_launches() {
  noted_multiprocessors = 0;
  return std::exchange(noted, {});
}

bool noting() { return noted_multiprocessors > 0; }

void note(Launch& launch, std::vector<Parameter> parameters) {
  check(launch);
  launch.seed = order_seed;
  launch.clusters = 1;
  noted.push_back(
      {"", launch.grid, launch.block, launch.cluster, launch.shared_bytes, std::move(parameters)});
  const std::string failure = Cluster().run(launch);
  if (noted.back().kernel.empty()) throw std::runtime_error(failure);
}

void note_beginning(Site site) {
  noted.back().kernel = site.function_name();
  fail("noted");
}

void set_architecture(int number) {
  require(number == 80 || number == 90, "set_architecture: number must be 80 or 90, got ", number);
  played_architecture = number;
}

}  // namespace convnet::emu

namespace convnet {
int architecture() { return emu::played_architecture; }
int multiprocessors() { return emu::noting() ? int{emu::noted_multiprocessors} : 3; }
}  // namespace convnet
