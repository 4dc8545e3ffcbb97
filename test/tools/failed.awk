# What go test has said of the tests that failed, the last lines of each: a log whose end is all that is kept has them then. With -v that stands before "--- FAIL", without it behind.
BEGIN { longest = 200 }
/^=== RUN +[^\/]+$/ { delete before; n = 0 }
/^--- FAIL: / {
  if (!any++) print "what failed:"
  for (i = (n > longest ? n - longest : 0); i < n; i++) print before[i]
  delete before; n = 0; behind = 1; print; next
}
behind && /^[ \t]/ { print; next }
{ behind = 0; before[n++] = $0 }
