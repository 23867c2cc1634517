"""What makes it fast: convolution by transforms, routing in blocks, and the memory of both."""
