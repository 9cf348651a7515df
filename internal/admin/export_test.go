package admin

// Forgive forgets who has tried what was not the token.
func (s *Server) Forgive() {
	s.attempts.mu.Lock()
	defer s.attempts.mu.Unlock()
	clear(s.attempts.until)
}

// Guessers returns how many of them are remembered.
func (s *Server) Guessers() int {
	s.attempts.mu.Lock()
	defer s.attempts.mu.Unlock()
	return len(s.attempts.until)
}
