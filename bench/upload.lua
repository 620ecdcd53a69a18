-- wrk's request: a body of 10 MB, made once.
wrk.method = "POST"
wrk.body = string.rep("x", 10000000)
