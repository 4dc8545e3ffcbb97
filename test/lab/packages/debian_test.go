package packages

import "testing"

func TestComplaints(t *testing.T) {
	for name, tt := range map[string]struct{ said, want string }{
		"errors alone, the first three":    {"Reading package lists...\nE: one\nW: beside\nE: two\nE: three\nE: four\n", "E: one | E: two | E: three"},
		"the last lines of who marks none": {"dpkg-deb: reading\na\nb\nno end of ar header\n", "a | b | no end of ar header"},
		"nothing":                          {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := complaints(tt.said); got != tt.want {
				t.Errorf("complaints(%q) = %q, want %q", tt.said, got, tt.want)
			}
		})
	}
}
