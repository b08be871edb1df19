"""The run on this machine, by KFP's local runners."""
