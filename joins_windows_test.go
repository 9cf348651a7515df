package levee_test

// tighten leaves the buffers as they are here.
func tighten(any) {}
