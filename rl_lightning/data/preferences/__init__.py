"""What labellers are asked about: recorded steps or lines of a file, drawn, paired and split."""
