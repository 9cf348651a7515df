module github.com/levee-net/levee/bench

go 1.26.0

require (
	github.com/cloudwego/netpoll v0.7.2
	github.com/levee-net/levee v0.0.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0 // indirect
	github.com/bytedance/gopkg v0.1.1 // indirect
	github.com/cloudwego/gopkg v0.1.4 // indirect
	github.com/pires/go-proxyproto v0.15.0 // indirect
)

replace github.com/levee-net/levee => ../
