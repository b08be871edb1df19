"""A pure function mapped over parts of a dataset: in threads, in processes of this machine, or on Ray."""
