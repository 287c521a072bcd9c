module hanse/tests/interop/spire

go 1.26.2

// Nothing is imported: the build script copies this version and builds its server.
require github.com/spiffe/spire v1.14.5
