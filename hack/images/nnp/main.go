// Nnp prints its effective user id. It is installed setuid root, so that what it prints says whether
// the process was allowed to gain privileges (no_new_privs, see prctl(2)).
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
