"""Networks as the definition files of cuda-convnet, of the 2012 program and of cuda-convnet2 describe them."""
