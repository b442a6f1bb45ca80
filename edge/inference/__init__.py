"""The two networks on their runtimes: bundle, weights, engine cache, backends."""
