"""Files that pip's resolver cannot bring: single wheels and Debian packages, fetched by name and digest, on demand."""
