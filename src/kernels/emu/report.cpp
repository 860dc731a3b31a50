// How a kernel is stopped, and the words for it.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "../check.hpp"
#include "cluster.hpp"
#include "copy_async.hpp"
#include "sm90.hpp"

namespace convnet::emu {

void fail(const std::string& text) {
  throw std::runtime_error(here == nullptr ? "emulator: " + text
                                           : message("thread ", describe(here->index), ": ", text));
}

void fail_unaligned(const void* address, int bytes, Site site) {
  fail(message(bytes, "-byte access in ", describe(site), " to an address that is no multiple of ",
               bytes, " (", address, ")"));
}

void fail_too_early(Site site) {
  fail(message("access in ", describe(site), " in front of begin_kernel()"));
}

void fail_not_shared(const char* operation, const void* address, Site site) {
  const SharedMemory& shared = here->block->shared;
  fail(message(operation, " in ", describe(site), " to an address outside the ", shared.size(),
               " bytes of shared memory, at byte ",
               static_cast<const unsigned char*>(address) - shared.data()));
}

std::string describe(Index index) { return message("(", index.x, ",", index.y, ",", index.z, ")"); }

// GCC gives "void convnet::{anonymous}::kernel(int) [with T = float]", Clang "void convnet::(anonymous namespace)::kernel(int)
// [T = float]"; the bare name is enough.
std::string describe(Site site) {
  std::string_view name = site.function_name();
  constexpr std::string_view kNoName = "(anonymous namespace)::";
  if (const auto at = name.rfind(kNoName); at != name.npos) name.remove_prefix(at + kNoName.size());
  name = name.substr(0, name.find('('));
  name = name.substr(name.find_last_of(" :") + 1);
  const char* slash = std::strrchr(site.file_name(), '/');
  return message(name, " (", slash ? slash + 1 : site.file_name(), ":", site.line(), ")");
}

void Cluster::fail_stuck() {
  throw std::runtime_error(message("deadlock, no thread can go on", describe_threads()));
}

namespace {

// "; threads 0-15 wait for __syncthreads in f (a.cu:3); threads 16-31 have ended", in the order of their numbers.
std::string describe_threads_of(const Block& block, const std::vector<const Thread*>& sorted) {
  std::vector<std::pair<std::string, std::string>> groups;  // what they do, which
  const Sm90* sm90 = block.sm90_in_use();
  for (std::size_t i = 0, end = 0; i < sorted.size(); i = end) {
    const auto activity = [&](const Thread& thread) {
      if (thread.ended()) return std::string("have ended");
      if (thread.ready()) return std::string("were not waiting");
      return message("wait for ", thread.waits_for, " in ", describe(thread.site),
                     sm90 != nullptr ? sm90->state_of(thread.word) : "");
    };
    const std::string doing = activity(*sorted[i]);
    for (end = i + 1; end < sorted.size() && activity(*sorted[end]) == doing;) ++end;
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == doing; });
    if (group == groups.end()) group = groups.insert(groups.end(), {doing, ""});
    if (!group->second.empty()) group->second += ", ";
    group->second += end - i == 1 ? message(i) : message(i, "-", end - 1);
  }
  std::string text;
  for (const auto& [doing, which] : groups)
    text += message("; threads ", which, block.of_cluster(), " ", doing);
  return text;
}

}  // namespace

std::string Cluster::describe_threads() const {
  std::string text;
  for (int rank = 0; rank < size_; ++rank) {
    const Block& block = *blocks_[static_cast<std::size_t>(rank)];
    std::vector<const Thread*> sorted(static_cast<std::size_t>(block.size()));
    for (const Thread& thread : threads_)
      if (thread.block == &block) sorted[static_cast<std::size_t>(thread.number)] = &thread;
    text += describe_threads_of(block, sorted);
  }
  return text;
}

}  // namespace convnet::emu
