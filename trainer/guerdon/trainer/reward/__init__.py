"""`guerdon train reward`: reward models from preference pairs, attributes and step labels."""
