executable     = /bin/echo
arguments      = $(fruit) $(count)
output         = $(fruit).$(Process).out
log            = items.log
request_memory = 32 MB
request_disk   = 10 MB
queue fruit, count from (
    apple 1
    pear  2
)
