// Which kernels the products have, which they take, and which they must take; and whether any kernel runs at all.
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../kernels/check.hpp"
#include "../kernels/conv_backward_data.hpp"
#include "../kernels/conv_backward_filter.hpp"
#include "../kernels/conv_forward.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/local.hpp"
#include "../kernels/variants.hpp"

#include "bind.hpp"
#include "register.hpp"

namespace convnet::bindings {
namespace {

std::vector<VariantRow> all_rows() {
  std::vector<VariantRow> rows;
  for (const auto& of_op : {conv_forward_variants(), conv_backward_data_variants(),
                            conv_backward_filter_variants(), linear_variants(), local_variants()})
    rows.insert(rows.end(), of_op.begin(), of_op.end());
  return rows;
}

std::string conv_variant(std::string op, const ConvShape& shape, Precision precision) {
  if (op == "conv_forward") return conv_forward_variant(shape, precision);
  if (op == "conv_backward_data") return conv_backward_data_variant(shape, precision);
  require(op == "conv_backward_filter",
          "conv_variant: op must be conv_forward, conv_backward_data or conv_backward_filter, got ",
          op);
  return conv_backward_filter_variant(shape, precision);
}

std::string local_variant(std::string op, const LocalShape& shape, Precision precision) {
  if (op == "local_forward") return local_forward_variant(shape, precision);
  if (op == "local_backward_data") return local_backward_data_variant(shape, precision);
  require(op == "local_backward_filter",
          "local_variant: op must be local_forward, local_backward_data or local_backward_filter, "
          "got ",
          op);
  return local_backward_filter_variant(shape, precision);
}

std::string linear_variant(std::string op, const LinearShape& shape, Precision precision) {
  if (op == "linear_forward") return linear_forward_variant(shape, precision);
  if (op == "linear_backward_data") return linear_backward_data_variant(shape, precision);
  require(op == "linear_backward_filter",
          "linear_variant: op must be linear_forward, linear_backward_data or "
          "linear_backward_filter, got ",
          op);
  return linear_backward_filter_variant(shape, precision);
}

void force(std::string op, std::string name) {
  const auto rows = all_rows();
  require(std::any_of(rows.begin(), rows.end(),
                      [&](const VariantRow& row) {
                        return row.op == op && (name.empty() || row.name == name);
                      }),
          "force_variant: there is no variant ", name, " of ", op, "; see variants()");
  force_variant(op, name);
}

void check_only(bool on) { only_checking() = on; }

const char* name_of(Precision precision) {
  return precision == Precision::fp32 ? "fp32" : precision == Precision::tf32 ? "tf32" : "bf16";
}

py::list variants() {
  py::list rows;
  for (const VariantRow& row : all_rows()) {
    py::dict entry;
    entry["op"] = row.op, entry["name"] = row.name, entry["precision"] = name_of(row.precision);
    entry["architecture"] = row.architecture, entry["tile"] = row.tile, entry["when"] = row.when;
    rows.append(entry);
  }
  return rows;
}

}  // namespace

void register_variants(py::module_& m) {
  bind(m, "conv_variant", &conv_variant, {"op", "shape", "precision"});
  bind(m, "local_variant", &local_variant, {"op", "shape", "precision"});
  bind(m, "linear_variant", &linear_variant, {"op", "shape", "precision"});
  bind(m, "force_variant", &force, {"op", "name"});
  m.def("variants", &variants);
}

void register_checking(py::module_& m) { bind(m, "check_only", &check_only, {"on"}); }

}  // namespace convnet::bindings
