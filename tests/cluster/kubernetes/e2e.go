// Package clusternodes has no code: the import keeps what upstream's tests are built from in go.mod, which knows tools by
// themselves and tests only by who imports them.
package clusternodes

import _ "k8s.io/kubernetes/test/e2e"
