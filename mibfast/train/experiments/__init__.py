"""Fixed studies: bottlenecks of two views, classifiers of true features, and the demonstration on digits."""
