package issuer

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// readTimeout bounds one reading of a Secret.
const readTimeout = 5 * time.Second

// AdminFiles are the admin certificate as a program has it that is an issuer itself: read from the Secret at every connection, without a file. While the API server is away the last ones
// stay in use.
func (i *Issuer) AdminFiles(ctx context.Context) *pki.Files {
	var mu sync.Mutex
	last := reader(nil)
	prefix := fmt.Sprintf("Secret %s/%s ", i.cfg.Namespace, Admin) // for errors
	read := func(name string) ([]byte, error) {
		name = strings.TrimPrefix(name, prefix)
		mu.Lock()
		defer mu.Unlock()
		if name == pki.CAFile { // the first to be read: the others belong to the same version
			ctx, cancel := context.WithTimeout(ctx, readTimeout)
			defer cancel()
			secret, err := i.api.CoreV1().Secrets(i.cfg.Namespace).Get(ctx, Admin, metav1.GetOptions{})
			if err == nil {
				last = reader(secret.Data)
			} else if _, none := last(name); none != nil {
				return nil, fmt.Errorf("read Secret %s/%s: %w", i.cfg.Namespace, Admin, err)
			}
		}
		return last(name)
	}
	return &pki.Files{Read: read, CA: prefix + pki.CAFile, Cert: prefix + pki.CertFile, Key: prefix + pki.KeyFile}
}
