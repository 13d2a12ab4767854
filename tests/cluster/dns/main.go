// Command coredns is CoreDNS with what the DNS of a cluster is made of and nothing else: it has nobody outside to ask.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order in which a question passes them.
	dnsserver.Directives = []string{"ready", "errors", "kubernetes"}
	coremain.Run()
}
