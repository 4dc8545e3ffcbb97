// Package controller turns API objects into northbound rows and identities: one reconciler a file, each of them level-triggered. It runs as
// godwit-controller, of which any number may be started; only the leader writes.
package controller
