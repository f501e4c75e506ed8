// What the trained model gave on a bundle's reference images, as references.py.
#pragma once

#include <map>
#include <string>

#include "bundle.hpp"
#include "network.hpp"

namespace edgead {

// Reference name -> what the trained model gave on it. Raises a Failure where the bundle holds no such results, or they do
// not belong to its images.
std::map<std::string, Inference> read_expected(const Bundle &bundle);

}  // namespace edgead
