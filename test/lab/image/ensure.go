package image

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// DigestSuffix names the file beside an archive that Ensure leaves the image's digest in.
const DigestSuffix = ".digest"

// made is what Ensure knows of the archive that it wrote last.
type made struct {
	// Inputs is a hash of the image's description, and of size and time of each file that goes in.
	Inputs string `json:"inputs"`
	Digest string `json:"digest"`
}

// Ensure is Write, except that it leaves an archive that it wrote itself from the same files alone. The digest is also in archive.digest.
func (img Image) Ensure(archive string) (digest string, err error) {
	inputs, err := img.inputs()
	if err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	note := archive + ".made"
	if _, statErr := os.Stat(archive); statErr == nil {
		var m made
		b, err := os.ReadFile(note)
		if err == nil && json.Unmarshal(b, &m) == nil && m.Inputs == inputs {
			return m.Digest, os.WriteFile(archive+DigestSuffix, []byte(m.Digest), 0o644)
		}
	}
	// Removed first: whatever is killed when, the note never speaks of another archive than the one beside it.
	if err := os.Remove(note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	if digest, err = img.Write(archive); err != nil {
		return "", err
	}
	b, err := json.Marshal(made{Inputs: inputs, Digest: digest})
	if err != nil {
		return "", fmt.Errorf("write image %s: %w", img.Ref, err)
	}
	return digest, errors.Join(os.WriteFile(archive+DigestSuffix, []byte(digest), 0o644), os.WriteFile(note, b, 0o644))
}

func (img Image) inputs() (string, error) {
	h := sha256.New()
	e := json.NewEncoder(h)
	if err := e.Encode(img); err != nil {
		return "", err
	}
	for _, f := range img.Files {
		if f.From == "" {
			continue
		}
		fi, err := os.Stat(f.From)
		if err != nil {
			return "", err
		}
		if err := e.Encode([]string{f.From, fmt.Sprint(fi.Size()), fi.ModTime().Format(time.RFC3339Nano)}); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
