"""Guest kernels, initrds and disks, made from Debian packages and kept in the user's cache folder."""
