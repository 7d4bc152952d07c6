"""The kernels, in the Triton language. Imported only where one is about to run or to be compiled."""
