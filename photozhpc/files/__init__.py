"""What every stage reads and writes through: disks, object stores, locks, compiled code."""
