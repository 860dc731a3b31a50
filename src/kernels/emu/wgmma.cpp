#include "wgmma.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "../check.hpp"
#include "cluster.hpp"
#include "glass.hpp"
#include "sm90.hpp"
#include "tensor_core.hpp"
#include "warp.hpp"

namespace convnet {
namespace emu {
namespace {

constexpr uint32_t kAddressLimit = 1 << 18;
constexpr uint64_t kReserved = 0x3ff1c000c000c000u;  // bits that must be zero, base offset excluded
constexpr uint64_t kBaseOffset = 0x000e000000000000u;

// A signalling NaN, which every arithmetic changes, so that sums that were touched while in use are found out.
constexpr uint32_t kInUse = 0xffa5a5a5u;

// The fields of a shared-memory descriptor, in bytes.
struct Operand {
  uint32_t start, lbo, sbo;
  Swizzle swizzle;
  uint32_t span;

  explicit Operand(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        lbo(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        sbo(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        swizzle(static_cast<Swizzle>((4 - (descriptor >> 62)) % 4)),  // counted backwards
        span(static_cast<uint32_t>(span_of(swizzle))) {}

  // Where the 16 bytes lie that hold eight elements: of row or column mn from term k on, or, transposed, of term k from row
  // or column mn on.
  uint32_t chunk(uint32_t mn, uint32_t k, bool transposed) const {
    return swizzled(start + linear(mn, k, transposed), swizzle);
  }

  uint32_t linear(uint32_t mn, uint32_t k, bool transposed) const {
    if (!transposed && swizzle == Swizzle::none) return mn % 8 * 16 + mn / 8 * sbo + k / 8 * lbo;
    if (!transposed) return mn % 8 * span + mn / 8 * sbo + k * 2;
    if (swizzle == Swizzle::none) return mn / 8 * sbo + k % 8 * 16 + k / 8 * lbo;
    const uint32_t elements = span / 2;
    return mn % elements * 2 + mn / elements * lbo + k % 8 * span + k / 8 * sbo;
  }
};

// Calls visit(first mn, first k, address) for all chunks of an operand.
template <class Visit>
void for_each_chunk(const Operand& operand, int extent, bool transposed, Visit visit) {
  const uint32_t mn_step = transposed ? 8 : 1, k_step = transposed ? 1 : 8;
  for (uint32_t k = 0; k < kProductTerms; k += k_step)
    for (uint32_t mn = 0; mn < static_cast<uint32_t>(extent); mn += mn_step)
      visit(mn, k, operand.chunk(mn, k, transposed));
}

// Calls visit(i, place in [64][columns]) for the i-th of a thread's sums.
template <class Visit>
void for_each_sum(int thread, int columns, Visit visit) {
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const int column = thread % 4 * 2;
  for (int i = 0; i < columns / 2; ++i)
    visit(i, (row + i / 2 % 2 * 8) * columns + i / 4 * 8 + column + i % 2);
}

// Low bits of a tf32 value that hardware ignores.
constexpr uint32_t kCut = 0x1fff;

double number(uint16_t bits) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
}

std::size_t lane_of_group() { return static_cast<std::size_t>(here->number % kGroupThreads); }

bool operator==(const Product& x, const Product& y) {
  return x.commit == y.commit && x.tf32 == y.tf32 && x.columns == y.columns &&
         x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b &&
         x.a_in_registers == y.a_in_registers && x.a == y.a && x.b == y.b;
}

std::string describe(const Product& x) {
  if (x.commit) return "wgmma_commit()";
  const auto hex = [](uint64_t value) {
    std::ostringstream text;
    text << "0x" << std::hex << value;
    return text.str();
  };
  return message(x.tf32 ? "wgmma_tf32<" : "wgmma<", x.columns,
                 "> with a=", x.a_in_registers ? "registers" : hex(x.a),
                 x.transpose_a ? " transposed" : "", " b=", hex(x.b),
                 x.transpose_b ? " transposed" : "");
}

}  // namespace

void Warpgroups::start() {
  const int threads = block_.size();
  groups_.resize(static_cast<std::size_t>(threads + kGroupThreads - 1) / kGroupThreads);
  for (Group& group : groups_) {
    group.issued.clear();
    group.sums.clear();
    group.position.fill(0);
    group.fenced.fill(false);
    group.waiting = 0;
  }
  const int most = std::min(256, 65536 / threads / 8 * 8);
  registers_.assign(static_cast<std::size_t>(threads + kWarpLanes - 1) / kWarpLanes, most);
  free_registers_ = 0;
}

Warpgroups::Group& Warpgroups::mine(const char* operation, Site site) {
  const std::size_t number = static_cast<std::size_t>(here->number / kGroupThreads);
  if ((static_cast<int>(number) + 1) * kGroupThreads > block_.size())
    fail(message(
        operation, " in ", describe(site),
        " needs four whole warps, the first one's number a multiple of 4, but the block has ",
        block_.size(), " threads"));
  return groups_[number];
}

void Warpgroups::fence() {
  groups_[static_cast<std::size_t>(here->number / kGroupThreads)].fenced[lane_of_group()] = true;
}

// The rules of descriptors that a wrong result would show only by chance.
void Warpgroups::check_operand(
    uint64_t descriptor, int extent, bool transposed, const char* which, Site site) const {
  const Operand x(descriptor);
  const auto check = [&](bool condition, const auto&... rule) {
    if (!condition)
      fail(message("wgmma in ", describe(site), ", operand ", which, ": ", rule..., " (start ",
                   static_cast<int>(x.start) - static_cast<int>(kSharedWindow), ", LBO ", x.lbo,
                   ", SBO ", x.sbo, ", span ", x.span, ", ",
                   transposed ? "transposed" : "not transposed", ", extent ", extent, ")"));
  };
  check((descriptor & kReserved) == 0,
        "the descriptor has reserved bits set; make it by operand()");
  check((descriptor & kBaseOffset) == 0,
        "the base offset must be 0: place swizzled tiles at multiples of 8 spans");
  if (x.swizzle != Swizzle::none) {
    const uint32_t period = 8 * x.span, row_start = x.start % x.span;
    check(x.start % period < x.span, "8 rows of a swizzled tile must begin at a multiple of ",
          period, " bytes");
    if (!transposed) {
      check(row_start % 32 == 0, "it must begin at a multiple of 32 bytes within the span");
      check(extent <= 8 || x.sbo % period == 0, "SBO must be a multiple of ", period);
    } else {
      check(row_start == 0 || row_start + static_cast<uint32_t>(extent) * 2 <= x.span,
            "it begins within a span and must end there");
      check(x.sbo % period == 0, "SBO must be a multiple of ", period);
      check(static_cast<uint32_t>(extent) * 2 <= x.span || x.lbo % period == 0,
            "LBO must be a multiple of ", period);
    }
  }
  uint32_t last = 0;  // of the corners
  for (const uint32_t mn :
       {0u, 7u, static_cast<uint32_t>(extent - 8), static_cast<uint32_t>(extent - 1)})
    for (const uint32_t k : {0u, 7u, 8u, 15u})
      last = std::max(
          last, x.linear(transposed ? mn / 8 * 8 : mn, transposed ? k : k / 8 * 8, transposed));
  const uint32_t end = (x.start + last + 16 + x.span - 1) / x.span * x.span;
  check(x.start >= kSharedWindow && end <= kSharedWindow + block_.shared.size(), "it leaves the ",
        block_.shared.size(), " bytes of shared memory");
  if (copies_.any_noted())
    for_each_chunk(x, extent, transposed, [&](uint32_t, uint32_t, uint32_t address) {
      copies_.check_visible(block_.shared.data() + (address - kSharedWindow), 16, "wgmma", site);
    });
}

// The first thread of a warpgroup to come writes down what it calls, the others must call the same.
void Warpgroups::add(const Product& product, float* sum, const uint32_t* a_registers, Site site) {
  const char* operation = product.commit ? "wgmma_commit" : "wgmma";
  Group& group = mine(operation, site);
  const std::size_t lane = lane_of_group();
  if (!product.commit && !group.fenced[lane])
    fail(message("wgmma in ", describe(site),
                 " without wgmma_fence() since the thread began or waited"));
  const std::size_t position = group.position[lane]++;
  if (position == group.issued.size()) {
    Issued issued{};
    static_cast<Product&>(issued) = product;
    issued.site = site;
    if (!product.commit) {
      if (!product.a_in_registers)
        check_operand(product.a, kProductRows, product.transpose_a, "a", site);
      check_operand(product.b, product.columns, product.transpose_b, "b", site);
      issued.sums = group.sums.size();
      for (std::size_t i = 0; i < group.sums.size(); ++i)
        if (group.sums[i].places[lane] == sum && group.sums[i].columns == product.columns)
          issued.sums = i;
      if (issued.sums == group.sums.size()) {
        group.sums.push_back({.columns = product.columns, .places = {}, .values = {}});
        group.sums.back().values.resize(static_cast<std::size_t>(kProductRows * product.columns));
      }
      if (product.a_in_registers) {
        issued.a_values.resize(kGroupThreads);
        issued.a_places.resize(kGroupThreads);
      }
    }
    group.issued.push_back(std::move(issued));
  }
  Issued& issued = group.issued[position];
  if (!(issued == product) || site.line() != issued.site.line() ||
      site.column() != issued.site.column())
    fail(message("the threads of a warpgroup must call the same: ", describe(product), " in ",
                 describe(site), ", while others have called ", describe(issued), " in ",
                 describe(issued.site)));
  if (product.commit) return;
  join(group, issued, sum, site);
  if (product.a_in_registers) {
    for (int i = 0; product.tf32 && i < 4; ++i)
      if ((a_registers[i] & kCut) != 0)
        fail(message("wgmma_tf32 in ", describe(site), ": register ", i,
                     " of a was not rounded with round_tf32, hardware would truncate it"));
    std::copy_n(a_registers, 4, issued.a_values[lane].begin());
    issued.a_places[lane] = a_registers;
  }
}

// From its first product on, the thread's registers are in use.
void Warpgroups::join(Group& group, Issued& issued, float* sum, Site site) {
  const std::size_t lane = lane_of_group();
  Sums& sums = group.sums[issued.sums];
  if (sums.places[lane] == sum) return;
  if (sums.places[lane] != nullptr)
    fail(message("wgmma in ", describe(site),
                 ": this thread adds to other sums than the first thread that came here"));
  for (const Sums& other : group.sums) {
    const float* place = other.places[lane];
    if (place != nullptr && place < sum + issued.columns / 2 && sum < place + other.columns / 2)
      fail(message("wgmma in ", describe(site), ": sums of ", issued.columns,
                   " columns share registers with sums of ", other.columns,
                   " columns that are in use; wait for those first"));
  }
  sums.places[lane] = sum;
  for_each_sum(static_cast<int>(lane), sums.columns,
               [&](int i, int place) { sums.values[static_cast<std::size_t>(place)] = sum[i]; });
  for (int i = 0; i < sums.columns / 2; ++i) std::memcpy(sum + i, &kInUse, 4);
}

// Gives the sums to all threads of the group.
void Warpgroups::return_sums(Sums& sums, const Group& group) {
  for (int lane = 0; lane < kGroupThreads; ++lane) {
    float* sum = sums.places[static_cast<std::size_t>(lane)];
    for (int i = 0; i < sums.columns / 2; ++i)
      if (std::memcmp(sum + i, &kInUse, 4) != 0)
        fail(message("thread ", lane, " of the warpgroup has touched sum ", i, " of ",
                     sums.columns / 2, " before wgmma_wait in ", describe(group.site),
                     " gave it back"));
    for_each_sum(lane, sums.columns,
                 [&](int i, int place) { sum[i] = sums.values[static_cast<std::size_t>(place)]; });
  }
}

void Warpgroups::wait(int left, Site site) {
  Group& group = mine("wgmma_wait", site);
  const std::size_t lane = lane_of_group();
  group.fenced[lane] = false;
  if (group.waiting == 0) {
    group.left = left;
    group.site = site;
  } else if (group.left != left || group.site.line() != site.line()) {
    fail(message("the threads of a warpgroup must call the same: wgmma_wait<", left, "> in ",
                 describe(site), ", while others wait for <", group.left, "> in ",
                 describe(group.site)));
  }
  if (++group.waiting < kGroupThreads) {
    block_.cluster.wait_while(group.waits, group.waits, "wgmma_wait", site);
    return;
  }
  for (int other = 0; other < kGroupThreads; ++other)
    if (const std::size_t position = group.position[static_cast<std::size_t>(other)];
        position != group.issued.size())
      fail(message("the threads of a warpgroup must call the same: thread ", other,
                   " of it came to wgmma_wait in ", describe(site), " without ",
                   describe(group.issued[position]), " in ",
                   describe(group.issued[position].site)));
  complete(group, left);
  group.waiting = 0;
  ++group.waits;
}

// Performs all groups but the `left` newest ones.
void Warpgroups::complete(Group& group, int left) {
  auto commits = std::count_if(group.issued.begin(), group.issued.end(),
                               [](const Issued& issued) { return issued.commit; });
  std::size_t end = 0;  // of what is to be done
  for (std::size_t i = 0; i < group.issued.size() && commits > left; ++i)
    if (group.issued[i].commit) {
      --commits;
      end = i + 1;
    }
  for (std::size_t i = 0; i < end; ++i)
    if (!group.issued[i].commit) perform(group, group.issued[i]);
  group.issued.erase(group.issued.begin(), group.issued.begin() + static_cast<std::ptrdiff_t>(end));
  group.position.fill(group.issued.size());
  // Sums that nothing is to be added to any more go back.
  std::vector<Sums> in_use;
  for (std::size_t i = 0; i < group.sums.size(); ++i) {
    bool wanted = false;
    for (Issued& issued : group.issued)
      if (!issued.commit && issued.sums == i) {
        wanted = true;
        issued.new_sums = in_use.size();
      }
    if (wanted)
      in_use.push_back(std::move(group.sums[i]));
    else
      return_sums(group.sums[i], group);
  }
  for (Issued& issued : group.issued) issued.sums = issued.new_sums;
  group.sums = std::move(in_use);
}

// a is wanted as [row][term], b as [term][column].
void Warpgroups::gather(
    uint64_t descriptor, int extent, bool transposed, bool terms_first, double* out) const {
  const std::size_t mn_step = terms_first ? 1 : kProductTerms;
  const std::size_t k_step = terms_first ? static_cast<std::size_t>(extent) : 1;
  const std::size_t step = transposed ? mn_step : k_step;
  const unsigned char* shared = block_.shared.data();
  for_each_chunk(Operand(descriptor), extent, transposed,
                 [&](uint32_t mn, uint32_t k, uint32_t at) {
                   uint16_t bits[8];
                   std::memcpy(bits, shared + (at - kSharedWindow), 16);
                   if (watching) watch_shared_read(shared + (at - kSharedWindow), 16);
                   double* place = out + mn * mn_step + k * k_step;
                   for (std::size_t i = 0; i < 8; ++i) place[i * step] = number(bits[i]);
                 });
}

// b of a product in tf32, whose 16 bytes hold four terms where bf16 has eight.
void Warpgroups::gather_tf32(const Issued& product, double* out) const {
  const unsigned char* shared = block_.shared.data();
  for_each_chunk(
      Operand(product.b), product.columns, false, [&](uint32_t column, uint32_t k, uint32_t at) {
        const uint32_t first = at - kSharedWindow;
        uint32_t bits[4];
        std::memcpy(bits, shared + first, 16);
        if (watching) watch_shared_read(shared + first, 16);
        for (uint32_t i = 0; i < 4; ++i) {
          if ((bits[i] & kCut) != 0)
            fail(message("wgmma_tf32 in ", describe(product.site), ": byte ", first + 4 * i,
                         " of shared memory begins a value of b that was not rounded "
                         "with round_tf32, hardware would truncate it"));
          out[(k / 2 + i) * static_cast<uint32_t>(product.columns) + column] =
              std::bit_cast<float>(bits[i]);
        }
      });
}

// a that came in registers.
void Warpgroups::place_a(const Issued& product) {
  const int terms = product.terms();
  for (int lane = 0; lane < kGroupThreads; ++lane) {
    const auto& values = product.a_values[static_cast<std::size_t>(lane)];
    if (!std::equal(values.begin(), values.end(), product.a_places[static_cast<std::size_t>(lane)]))
      fail(message("thread ", lane, " of the warpgroup has changed the registers a of wgmma in ",
                   describe(product.site), " before its wgmma_wait"));
    const int first = lane / 32 * 16 + lane % 32 / 4, quad = lane % 4;
    for (int i = 0; i < 4; ++i) {
      double* row = a_.data() + (first + i % 2 * 8) * terms;
      const uint32_t value = values[static_cast<std::size_t>(i)];
      if (product.tf32) {
        row[i / 2 * 4 + quad] = std::bit_cast<float>(value);
      } else {
        row[i / 2 * 8 + quad * 2] = number(static_cast<uint16_t>(value));
        row[i / 2 * 8 + quad * 2 + 1] = number(static_cast<uint16_t>(value >> 16));
      }
    }
  }
}

void Warpgroups::perform(Group& group, const Issued& product) {
  const int columns = product.columns;
  a_.resize(kProductRows * kProductTerms);
  b_.resize(static_cast<std::size_t>(kProductTerms * columns));
  if (product.a_in_registers)
    place_a(product);
  else
    gather(product.a, kProductRows, product.transpose_a, false, a_.data());
  if (product.tf32)
    gather_tf32(product, b_.data());
  else
    gather(product.b, columns, product.transpose_b, true, b_.data());
  multiply_add(kProductRows, columns, product.terms(), a_.data(), b_.data(),
               group.sums[product.sums].values.data());
}

void Warpgroups::check_at_rest(const void* begin, std::size_t bytes, Site site) {
  const auto* first = static_cast<const unsigned char*>(begin);
  const std::size_t lane = lane_of_group();
  for (const Sums& sums : groups_[static_cast<std::size_t>(here->number / kGroupThreads)].sums) {
    const auto* place = reinterpret_cast<const unsigned char*>(sums.places[lane]);
    if (place != nullptr && place < first + bytes &&
        first < place + static_cast<std::size_t>(sums.columns) * 2)
      fail(message("hold in ", describe(site),
                   ": products of these sums are under way, so that the assembler would serialise "
                   "them; it belongs before the first wgmma_fence() and after wgmma_wait<0>()"));
  }
}

void Warpgroups::check_unread(const unsigned char* begin,
                              std::size_t bytes,
                              const char* operation,
                              Site site) const {
  const auto first = static_cast<uint32_t>(begin - block_.shared.data()) + kSharedWindow;
  for (const Group& group : groups_)
    for (const Issued& product : group.issued) {
      const auto check = [&](uint64_t descriptor, int extent, bool transposed) {
        for_each_chunk(
            Operand(descriptor), extent, transposed, [&](uint32_t, uint32_t, uint32_t at) {
              if (at >= first && at < first + bytes)
                fail(message(operation, " in ", describe(site), " overwrites byte ",
                             at - kSharedWindow, " of shared memory", block_.of_cluster(),
                             ", which wgmma in ", describe(product.site),
                             " still reads; its wgmma_wait "
                             "comes first"));
            });
      };
      if (product.commit) continue;
      if (!product.a_in_registers) check(product.a, kProductRows, product.transpose_a);
      check(product.b, product.columns, product.transpose_b);
    }
}

void Warpgroups::set_registers(int count, bool raise, Site site) {
  const char* operation = raise ? "raise_registers" : "lower_registers";
  mine(operation, site);
  meet(0, operation, site, [](const int*, int*) {});
  int& registers = registers_[static_cast<std::size_t>(here->number / kWarpLanes)];
  while (registers != count) {
    if (raise ? count < registers : count > registers)
      fail(message(operation, " in ", describe(site), " to ", count, ", but a thread has ",
                   registers));
    const int more = (count - registers) * kWarpLanes;
    if (more <= free_registers_) {
      free_registers_ -= more;
      registers = count;
      ++releases_;
    } else {
      block_.cluster.wait_while(releases_, releases_, operation, site);
    }
  }
}

void Warpgroups::end_thread(const Thread& thread) {
  const Group& group = groups_[static_cast<std::size_t>(thread.number / kGroupThreads)];
  if (group.position[static_cast<std::size_t>(thread.number % kGroupThreads)] == 0) return;
  for (const Issued& issued : group.issued)
    if (!issued.commit)
      fail(message("the thread ended without wgmma_wait for wgmma in ", describe(issued.site)));
}

void wgmma(bool tf32,
           int columns,
           bool transpose_a,
           bool transpose_b,
           float* sum,
           uint64_t a,
           const uint32_t* a_registers,
           uint64_t b,
           Site site) {
  here->block->sm90("wgmma", site)
      .warpgroups.add({.tf32 = tf32,
                       .columns = columns,
                       .transpose_a = transpose_a,
                       .transpose_b = transpose_b,
                       .a_in_registers = a_registers != nullptr,
                       .a = a,
                       .b = b},
                      sum, a_registers, site);
}

void wgmma_wait(int left, Site site) {
  if (passes("wgmma_wait", site)) here->block->sm90("wgmma_wait", site).warpgroups.wait(left, site);
}

void check_at_rest(const void* values, std::size_t bytes, Site site) {
  if (Sm90* sm90 = here->block->sm90_in_use()) sm90->warpgroups.check_at_rest(values, bytes, site);
}

void set_registers(int count, bool raise, Site site) {
  here->block->sm90("set_registers", site).warpgroups.set_registers(count, raise, site);
}

}  // namespace emu

uint64_t operand(const void* start, int lbo, int sbo, Swizzle swizzle, std::source_location site) {
  const uint32_t number = emu::shared_number(*emu::here->block, start, "operand", site);
  const auto field = [&](const char* name, int64_t bytes) {
    if (bytes % 16 != 0 || bytes < 0 || bytes >= int64_t{emu::kAddressLimit})
      emu::fail(message("operand in ", emu::describe(site), ": ", name,
                        " must be a multiple of 16 bytes below 2^18, got ", bytes));
    return static_cast<uint64_t>(bytes) >> 4;
  };
  return field("start", number) | field("LBO", lbo) << 16 | field("SBO", sbo) << 32 |
         (4 - static_cast<uint64_t>(swizzle)) % 4 << 62;
}

uint64_t advance(uint64_t descriptor, int bytes, std::source_location site) {
  const int64_t start = static_cast<int64_t>(descriptor & 0x3fff) + bytes / 16;
  if (bytes % 16 != 0 || start < 0 || start > 0x3fff)
    emu::fail(message("advance in ", emu::describe(site), " by ", bytes,
                      " bytes: a multiple of 16 that does not leave shared memory is needed"));
  return (descriptor & ~uint64_t{0x3fff}) | static_cast<uint64_t>(start);
}

void wgmma_fence(std::source_location site) {
  if (emu::passes("wgmma_fence", site))
    emu::here->block->sm90("wgmma_fence", site).warpgroups.fence();
}

void wgmma_commit(std::source_location site) {
  if (!emu::passes("wgmma_commit", site)) return;
  emu::here->block->sm90("wgmma_commit", site)
      .warpgroups.add({.commit = true}, nullptr, nullptr, site);
}

bool elect_one(std::source_location site) {
  emu::here->block->sm90("elect_one", site);
  emu::meet(0, "elect_one", site, [](const int*, int*) {});
  return emu::here->lane == 0;
}

}  // namespace convnet
