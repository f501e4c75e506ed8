// libedgead_plugin.so: the entry points by which TensorRT finds the plugins. One source for TensorRT 10.3 to 11.x; the
// library does not link libnvinfer, which is there already in any process that loads it.
#include "knn_plugin.h"
#include "mahalanobis_plugin.h"

namespace {

edgead::ScoreCreator<edgead::KnnPlugin> knn_creator;
edgead::ScoreCreator<edgead::MahalanobisPlugin> mahalanobis_creator;
nvinfer1::IPluginCreatorInterface* const creators[] = {&knn_creator, &mahalanobis_creator};

}  // namespace

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  edgead::logger_finder() = finder;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = static_cast<int32_t>(sizeof creators / sizeof creators[0]);
  return creators;
}
