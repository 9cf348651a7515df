module github.com/levee-net/levee/e2e

go 1.26.0
