NAME = "the layer"
